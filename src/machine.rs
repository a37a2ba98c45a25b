//! What produces the numbers: this program, the processor and the device. Recorded in manifests and
//! part of every product key.

use std::sync::OnceLock;

use secateur_tensor::Device;

/// The program's name and version.
pub(crate) const PROGRAM_VERSION: &str =
    concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// What the last bits of sums depend on: the element type, the device, and the processor, whose
/// vector units and cache sizes decide how a matrix product is split into tiles.
pub(crate) fn arithmetic_description(device: Device) -> String {
    format!(
        "float32, {}, {}, {}",
        device_description(device),
        std::env::consts::ARCH,
        cpu_description()
    )
}

/// `cpu`, or `cuda:0` with the GPU's name, the version of cuBLAS and, where the system reports it,
/// the version of the driver.
pub(crate) fn device_description(device: Device) -> String {
    let resolved = secateur_tensor::resolve_device(device).unwrap_or(device);
    let Some(gpu) = secateur_tensor::device_description(resolved) else {
        return resolved.to_string();
    };
    let driver_file = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = driver_file
        .lines()
        .find_map(|line| line.strip_prefix("NVRM version:"))
        .unwrap_or_default()
        .trim();
    format!("{resolved} ({gpu}; {driver})")
}

/// The processor's name, or its architecture where the system reports no name, and its widest
/// vector instructions.
pub(crate) fn cpu_description() -> &'static str {
    static DESCRIPTION: OnceLock<String> = OnceLock::new();
    DESCRIPTION.get_or_init(detect_cpu)
}

fn detect_cpu() -> String {
    let cpu_only = sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing());
    let system = sysinfo::System::new_with_specifics(cpu_only);
    let reported_name = system
        .cpus()
        .first()
        .map(|cpu| cpu.brand().trim().to_owned())
        .filter(|name| !name.is_empty());
    let name = reported_name.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match vector_extensions() {
        Some(extensions) => format!("{name} ({extensions})"),
        None => name,
    }
}

#[cfg(target_arch = "x86_64")]
fn vector_extensions() -> Option<&'static str> {
    if is_x86_feature_detected!("avx512f") {
        Some("AVX-512")
    } else if is_x86_feature_detected!("fma") {
        Some("AVX2, FMA")
    } else {
        None
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_extensions() -> Option<&'static str> {
    None
}
