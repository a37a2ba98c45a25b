//! CUDA's libraries, opened when a GPU is first asked for. cudarc links them, so without this a program built for CUDA would not
//! even start on a machine that lacks one, and nobody could say what is missing. Every function that it calls is defined here
//! instead, as a jump to where the library has it.

use std::error::Error;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::DeviceError;

/// A library: its name to the user, and to the loader, the newest first.
struct SharedLibrary {
    name: &'static str,
    files: &'static [&'static str],
    functions: &'static [(&'static str, &'static AtomicUsize)],
}

/// Defines functions that jump to where a library has them.
macro_rules! forward_to_library {
    ($($name:literal, [$($file:literal),+], [$($function:ident),+ $(,)?];)+) => {
        $($(
            #[expect(non_snake_case, unsafe_code, reason = "the library's own names, and jumps in place of links")]
            mod $function {
                /// Where the library has it.
                pub static ADDRESS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                unsafe extern "C" fn $function() {
                    #[cfg(target_arch = "x86_64")]
                    std::arch::naked_asm!("jmp qword ptr [rip + {at}]", at = sym ADDRESS);
                    #[cfg(target_arch = "aarch64")]
                    std::arch::naked_asm!("adrp x16, {at}", "ldr x16, [x16, :lo12:{at}]", "br x16", at = sym ADDRESS);
                }
            }
        )+)+
        const LIBRARIES: &[SharedLibrary] = &[
            $(SharedLibrary { name: $name, files: &[$($file),+], functions: &[$((stringify!($function), &$function::ADDRESS)),+] },)+
            SharedLibrary { name: "NVRTC", files: &["libnvrtc.so.13", "libnvrtc.so.12"], functions: &[("nvrtcCreateProgram", &NVRTC_CREATE_PROGRAM)] },
        ];
    };
}

forward_to_library! {
    "NVIDIA's driver", ["libcuda.so.1"], [
        cuCtxSetCurrent, cuDeviceGet, cuDeviceGetAttribute, cuDeviceGetCount, cuDeviceGetDefaultMemPool, cuDeviceGetName, cuDeviceTotalMem_v2, cuDevicePrimaryCtxRelease_v2,
        cuDevicePrimaryCtxRetain, cuEventCreate, cuEventDestroy_v2, cuEventRecord, cuGetErrorString, cuInit, cuLaunchKernel,
        cuMemAllocAsync, cuMemAlloc_v2, cuMemFreeAsync, cuMemFree_v2, cuMemGetInfo_v2, cuMemHostRegister_v2,
        cuMemHostUnregister, cuMemPoolSetAttribute, cuMemcpyDtoDAsync_v2, cuMemcpyDtoD_v2, cuMemcpyDtoHAsync_v2, cuMemcpyDtoH_v2,
        cuMemcpyHtoDAsync_v2, cuMemcpyHtoD_v2, cuMemsetD8Async, cuMemsetD8_v2, cuModuleGetFunction, cuModuleLoad,
        cuModuleLoadData, cuModuleUnload, cuStreamCreate, cuStreamDestroy_v2, cuStreamSynchronize, cuStreamWaitEvent,
    ];
    "cuBLAS", ["libcublas.so.13", "libcublas.so.12"], [
        cublasCreate_v2, cublasDestroy_v2, cublasGemmEx, cublasGemmStridedBatchedEx, cublasGetProperty, cublasSetStream_v2,
        cublasSgemmStridedBatched, cublasSgemm_v2,
    ];
    "NVRTC", ["libnvrtc.so.13", "libnvrtc.so.12"], [
        nvrtcCompileProgram, nvrtcDestroyProgram, nvrtcGetPTX, nvrtcGetPTXSize, nvrtcGetProgramLog, nvrtcGetProgramLogSize,
    ];
}

/// Opens them all, once.
///
/// # Errors
/// If one is not there, or lacks a function.
pub fn load_all() -> Result<(), DeviceError> {
    static OPENED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    OPENED
        .get_or_init(|| LIBRARIES.iter().try_for_each(SharedLibrary::open))
        .clone()
}

impl SharedLibrary {
    fn open(&self) -> Result<(), DeviceError> {
        let failed = |error: libloading::Error| {
            // the loader's own words
            let message = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            DeviceError::LibraryNotLoaded {
                library: self.name,
                message,
            }
        };
        #[expect(
            unsafe_code,
            reason = "a library runs code of its own when it is opened"
        )]
        // SAFETY: these are NVIDIA's own; what others of their names do is not in our hands.
        let open = |file: &&str| unsafe { Library::open(Some(*file), RTLD_NOW | RTLD_LOCAL) };
        let mut found = open(&self.files[0]);
        for file in &self.files[1..] {
            // the newest is named where there is none
            found = found.or_else(|error| open(file).map_err(|_| error));
        }
        let library = found.map_err(failed)?;
        for (name, at) in self.functions {
            #[expect(unsafe_code, reason = "an address is looked up")]
            // SAFETY: it is taken for an address and nothing else.
            let function =
                unsafe { library.get::<*const c_void>(name.as_bytes()) }.map_err(failed)?;
            at.store(function.into_raw() as usize, Ordering::Release);
        }
        // it stays open as long as the program runs
        std::mem::forget(library);
        Ok(())
    }
}

static NVRTC_CREATE_PROGRAM: AtomicUsize = AtomicUsize::new(0);

/// What `cuda_fp16.h` has that dfdx's conversions use. dfdx looks for that header where it was when the program was built,
/// which is another machine as a rule; a program is asked for with ours beside it.
const CUDA_FP16_HEADER: &std::ffi::CStr = c"
struct __half {
    unsigned short bits;
    __half() = default;
    __device__ __half(float x) { asm(\"cvt.rn.f16.f32 %0, %1;\" : \"=h\"(bits) : \"f\"(x)); }
    __device__ operator float() const { float x; asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(x) : \"h\"(bits)); return x; }
};
";

type CreateProgram = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// NVRTC's function of this name, which hands it [`CUDA_FP16_HEADER`] too. cudarc never hands it any.
#[expect(unsafe_code, reason = "stands in place of a link")]
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut c_void,
    source: *const c_char,
    name: *const c_char,
    _: c_int,
    _: *const *const c_char,
    _: *const *const c_char,
) -> c_int {
    // SAFETY: `open` has stored the function of this name, before any GPU was used.
    let create = unsafe {
        std::mem::transmute::<usize, CreateProgram>(NVRTC_CREATE_PROGRAM.load(Ordering::Acquire))
    };
    // SAFETY: what cudarc passes on, and one header that lives as long as the program.
    unsafe {
        create(
            program,
            source,
            name,
            1,
            [CUDA_FP16_HEADER.as_ptr()].as_ptr(),
            [c"cuda_fp16.h".as_ptr()].as_ptr(),
        )
    }
}
