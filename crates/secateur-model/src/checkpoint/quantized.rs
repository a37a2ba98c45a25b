//! Recognises quantised checkpoints: their tensors are codes and scales, not weights.

use safetensors::tensor::Dtype;

use super::{Checkpoint, CheckpointError};

/// Ends of the names of tensors that quantised checkpoints hold, and the methods that write them.
const QUANTISED_TENSORS: [(&str, &str); 15] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".scales", "GPTQ, AWQ or MLX"),
    (".g_idx", "GPTQ"),
    (".weight.absmax", "bitsandbytes, 4 bits"),
    (".weight.quant_map", "bitsandbytes, 4 bits"),
    (
        ".weight.quant_state.bitsandbytes__nf4",
        "bitsandbytes, 4 bits",
    ),
    (
        ".weight.quant_state.bitsandbytes__fp4",
        "bitsandbytes, 4 bits",
    ),
    (".SCB", "bitsandbytes, 8 bits"),
    (".weight_format", "bitsandbytes, 8 bits"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_scale", "FP8 or compressed-tensors"),
    (".input_scale", "FP8"),
    (".W_q", "HQQ"),
];

pub(super) const QUANTIZATION_KEY: &str = "quantization_config";

impl Checkpoint {
    /// An error if the checkpoint is quantised: if it holds a tensor that only quantised checkpoints
    /// have, or if a weight has a type of 8 bits or fewer.
    pub(super) fn refuse_quantised(&self, needed: &[String]) -> Result<(), CheckpointError> {
        let names = self.shard_by_tensor.keys();
        let by_name = names.into_iter().find_map(|name| {
            let (_, method) = QUANTISED_TENSORS
                .iter()
                .find(|(end, _)| name.ends_with(end))?;
            Some((name, *method))
        });
        let has_codes = |name: &&String| {
            self.tensor_info(name)
                .is_ok_and(|(_, info)| info.dtype.bitsize() <= 8 && info.dtype != Dtype::BOOL)
        };
        let by_type = || Some((needed.iter().find(has_codes)?, "weights of 8 bits or fewer"));
        let Some((tensor, method)) = by_name.or_else(by_type) else {
            return Ok(());
        };
        let declared = self.config.raw.values.get(QUANTIZATION_KEY);
        let declared_method = declared.and_then(|config| config["quant_method"].as_str());
        Err(CheckpointError::Quantised {
            method: declared_method.unwrap_or(method).to_owned(),
            tensor: tensor.clone(),
        })
    }

    /// A warning if the config says that the checkpoint is quantised, and its weights are not.
    pub(super) fn unused_quantization_config(&self) -> Option<String> {
        self.config.raw.has(QUANTIZATION_KEY).then(|| {
            format!(
                "config.json has a `{QUANTIZATION_KEY}`, and the weights are stored as {}; they are read \
                 as they are, and an export has no `{QUANTIZATION_KEY}`",
                self.dtype().torch_name()
            )
        })
    }
}
