//! The speed and memory that `profile` measured, as text. They are in no table, because they differ
//! between runs.

use std::path::Path;

use polars::prelude::*;
use serde_json::Value;

use crate::progress::{format_significant, wrap_lines};

/// What the last `profile` stage of each variant measured, in lines of at most `width` characters.
/// Empty if no variant has one.
pub(crate) fn format_profiles(
    results_folder: &Path,
    variants: &DataFrame,
    width: usize,
) -> Result<String, PolarsError> {
    let mut text = String::new();
    for id in variants.column("variant")?.str()?.iter().flatten() {
        if let Some(profile) = read_last_profile(&results_folder.join(id)) {
            text.push_str(&format_profile(id, &profile, width));
        }
    }
    if text.is_empty() {
        return Ok(text);
    }
    let compared = if text.contains('×') {
        ", and × those of the dense model"
    } else {
        ""
    };
    let title = format!(
        "speed in tokens per second and memory in MiB{compared} (medians of rounds, with their 95 % \
         confidence intervals):"
    );
    let title = wrap_lines(&title, width, "");
    Ok(format!("\n{title}\n{text}"))
}

/// The profile of the last stage: `profile.json`, `profile-2.json`, … in the order of the stages.
fn read_last_profile(variant_folder: &Path) -> Option<Value> {
    let name = |number: u32| match number {
        1 => "profile.json".to_owned(),
        _ => format!("profile-{number}.json"),
    };
    let contents = (1..).map_while(|number| std::fs::read(variant_folder.join(name(number))).ok());
    serde_json::from_slice(&contents.last()?).ok()
}

fn format_profile(id: &str, profile: &Value, width: usize) -> String {
    let (model, ratio) = (&profile["model"], &profile["ratio"]);
    let mebibytes = model["peak_memory"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
    let memory_ratio = ratio["peak_memory"].as_f64();
    let mut lines = format!("  {id}\n");
    for phase in ["prefill", "decode"] {
        let speed = format_median(model, phase, format_significant).unwrap_or_default();
        let ratio_text = format_median(ratio, phase, |value| format!("{value:.2}"));
        // Profiles of earlier versions have no verdict.
        let verdict = ratio[format!("{phase}_verdict")]
            .as_str()
            .unwrap_or_default();
        let ratio_text = ratio_text.map(|text| format!("{text} {verdict}"));
        lines.push_str(&format_line(phase, &speed, ratio_text, width));
    }
    let memory_ratio = memory_ratio.map(|ratio| format!("{ratio:.2}"));
    let memory = format_significant(mebibytes);
    lines + &format_line("memory", &memory, memory_ratio, width)
}

/// `prefill  969 [950 – 980]  × 1.73 [1.70 – 1.75] faster`, or only its first half. The second half has a
/// line of its own where both are wider than `width`.
fn format_line(what: &str, value: &str, ratio: Option<String>, width: usize) -> String {
    let ratio = ratio.map_or_else(String::new, |ratio| format!("× {ratio}"));
    let line = format!("    {what:<8} {value:<26} {ratio}");
    let line = line.trim_end();
    if line.chars().count() <= width {
        format!("{line}\n")
    } else {
        format!("    {what:<8} {value}\n             {ratio}\n")
    }
}

/// `969 [950 – 980]`, without the interval if there are too few rounds.
fn format_median(values: &Value, phase: &str, format: impl Fn(f64) -> String) -> Option<String> {
    let median = format(values[format!("{phase}_tokens_per_second")].as_f64()?);
    let interval = &values[format!("{phase}_interval")];
    Some(match (interval[0].as_f64(), interval[1].as_f64()) {
        (Some(low), Some(high)) => format!("{median} [{} – {}]", format(low), format(high)),
        _ => median,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn speeds_have_intervals_and_verdicts_within_80_columns() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let id = "taylor-max-ratio0.25-505da8fb";
        let variant = folder.path().join(id);
        std::fs::create_dir(&variant).expect("the folder is writable");
        let write = |name: &str, profile: Value| {
            std::fs::write(variant.join(name), profile.to_string()).expect("it is writable");
        };
        let table = df!("variant" => [id, "absent"]).expect("a table");
        let format_in =
            |width| format_profiles(folder.path(), &table, width).expect("a column of texts");
        let format = || format_in(80);
        assert_eq!(format(), "");
        let dense = json!({
            "model": {
                "peak_memory": 1 << 20, "prefill_tokens_per_second": 2.0,
                "prefill_interval": null, "decode_tokens_per_second": 0.5,
            },
            "ratio": null,
        });
        write("profile.json", dense);
        assert!(
            format().ends_with("\n    prefill  2.00\n    decode   0.500\n    memory   1.00\n"),
            "a model that is compared with none: {}",
            format()
        );
        write(
            "profile-2.json",
            json!({
                "model": {
                    "peak_memory": 282_066_944, "prefill_tokens_per_second": 123_456.7,
                    "prefill_interval": [123_400.0, 123_500.4], "decode_tokens_per_second": 38.61,
                    "decode_interval": [37.0, 39.96],
                },
                "ratio": {
                    "peak_memory": 0.614, "prefill_tokens_per_second": 1.731,
                    "prefill_interval": [1.699, 1.75], "prefill_verdict": "faster",
                    "decode_tokens_per_second": 1.02, "decode_interval": [0.9712, 1.08],
                    "decode_verdict": "too noisy to say",
                },
            }),
        );
        let text = format();
        let expected = "
speed in tokens per second and memory in MiB, and × those of the dense model
(medians of rounds, with their 95 % confidence intervals):
  taylor-max-ratio0.25-505da8fb
    prefill  123457 [123400 – 123500]   × 1.73 [1.70 – 1.75] faster
    decode   38.6 [37.0 – 40.0]         × 1.02 [0.97 – 1.08] too noisy to say
    memory   269                        × 0.61
";
        assert_eq!(text, expected);
        let narrow = format_in(60);
        assert!(
            narrow.lines().all(|line| line.chars().count() <= 60),
            "{narrow}"
        );
        assert!(
            narrow.contains("decode   38.6 [37.0 – 40.0]\n             × 1.02"),
            "{narrow}"
        );
    }
}
