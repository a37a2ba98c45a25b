//! CUDA's libraries, opened when a GPU is first used.
//!
//! cudarc links these libraries. A program built for CUDA would then not start on a machine that
//! lacks one, and could not report which one is missing. So every function that cudarc calls is
//! defined here, as a jump to the address of the function in the opened library.

use std::error::Error;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::device::DeviceError;

/// A shared library.
struct SharedLibrary {
    /// Its name in messages.
    name: &'static str,
    /// Its file names, the newest version first.
    files: &'static [&'static str],
    /// The functions that are called, and where their addresses are stored.
    functions: &'static [(&'static str, &'static AtomicUsize)],
}

/// Defines functions that jump to the functions of the same names in libraries.
macro_rules! forward_to_library {
    ($($name:literal, [$($file:literal),+], [$($function:ident),+ $(,)?];)+) => {
        $($(
            #[expect(
                non_snake_case,
                unsafe_code,
                reason = "the names are the library's; a jump replaces a link"
            )]
            mod $function {
                /// The address of the function in the library.
                pub(super) static ADDRESS: std::sync::atomic::AtomicUsize =
                    std::sync::atomic::AtomicUsize::new(0);
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                unsafe extern "C" fn $function() {
                    #[cfg(target_arch = "x86_64")]
                    std::arch::naked_asm!("jmp qword ptr [rip + {address}]", address = sym ADDRESS);
                    #[cfg(target_arch = "aarch64")]
                    std::arch::naked_asm!(
                        "adrp x16, {address}",
                        "ldr x16, [x16, :lo12:{address}]",
                        "br x16",
                        address = sym ADDRESS
                    );
                }
            }
        )+)+
        const LIBRARIES: &[SharedLibrary] = &[
            $(SharedLibrary {
                name: $name,
                files: &[$($file),+],
                functions: &[$((stringify!($function), &$function::ADDRESS)),+],
            },)+
            SharedLibrary {
                name: "NVRTC",
                files: &["libnvrtc.so.13", "libnvrtc.so.12"],
                functions: &[("nvrtcCreateProgram", &NVRTC_CREATE_PROGRAM)],
            },
        ];
    };
}

forward_to_library! {
    "NVIDIA's driver", ["libcuda.so.1"], [
        cuCtxSetCurrent, cuDeviceGet, cuDeviceGetAttribute, cuDeviceGetCount,
        cuDeviceGetDefaultMemPool, cuDeviceGetName, cuDeviceTotalMem_v2,
        cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRetain, cuEventCreate,
        cuEventDestroy_v2, cuEventRecord, cuGetErrorString, cuInit, cuLaunchKernel,
        cuMemAllocAsync, cuMemAlloc_v2, cuMemFreeAsync, cuMemFree_v2, cuMemGetInfo_v2,
        cuMemHostRegister_v2, cuMemHostUnregister, cuMemPoolSetAttribute, cuMemcpyDtoDAsync_v2,
        cuMemcpyDtoD_v2, cuMemcpyDtoHAsync_v2, cuMemcpyDtoH_v2, cuMemcpyHtoDAsync_v2,
        cuMemcpyHtoD_v2, cuMemsetD8Async, cuMemsetD8_v2, cuModuleGetFunction, cuModuleLoad,
        cuModuleLoadData, cuModuleUnload, cuStreamCreate, cuStreamDestroy_v2,
        cuStreamSynchronize, cuStreamWaitEvent,
    ];
    "cuBLAS", ["libcublas.so.13", "libcublas.so.12"], [
        cublasCreate_v2, cublasDestroy_v2, cublasGemmEx, cublasGemmStridedBatchedEx,
        cublasGetProperty, cublasSetStream_v2, cublasSgemmStridedBatched, cublasSgemm_v2,
    ];
    "NVRTC", ["libnvrtc.so.13", "libnvrtc.so.12"], [
        nvrtcCompileProgram, nvrtcDestroyProgram, nvrtcGetPTX, nvrtcGetPTXSize,
        nvrtcGetProgramLog, nvrtcGetProgramLogSize,
    ];
}

/// Opens all libraries, once.
///
/// # Errors
/// If one cannot be opened, or lacks a function.
pub(super) fn load_all() -> Result<(), DeviceError> {
    static OPENED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    OPENED
        .get_or_init(|| LIBRARIES.iter().try_for_each(SharedLibrary::open))
        .clone()
}

impl SharedLibrary {
    fn open(&self) -> Result<(), DeviceError> {
        let not_loaded = |error: libloading::Error| {
            // the message of the system's loader, if there is one
            let message = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            DeviceError::LibraryNotLoaded {
                library: self.name,
                message,
            }
        };
        #[expect(unsafe_code, reason = "opening a library runs its initialisers")]
        // SAFETY: the file names are those of NVIDIA's libraries, whose initialisers may run at any
        // time.
        let open = |file: &&str| unsafe { Library::open(Some(*file), RTLD_NOW | RTLD_LOCAL) };
        let mut opened = open(&self.files[0]);
        for file in &self.files[1..] {
            // if no version opens, the error is that of the newest
            opened = opened.or_else(|error| open(file).map_err(|_| error));
        }
        let library = opened.map_err(not_loaded)?;
        for (name, address) in self.functions {
            #[expect(unsafe_code, reason = "looks up an address")]
            // SAFETY: the symbol is used as an address alone.
            let function =
                unsafe { library.get::<*const c_void>(name.as_bytes()) }.map_err(not_loaded)?;
            address.store(function.into_raw() as usize, Ordering::Release);
        }
        // never closed: the jumps use it as long as the program runs
        std::mem::forget(library);
        Ok(())
    }
}

static NVRTC_CREATE_PROGRAM: AtomicUsize = AtomicUsize::new(0);

/// The part of `cuda_fp16.h` that dfdx's conversion kernels use. dfdx passes the path of that
/// header on the machine on which the program was built, where it need not exist at run time; so
/// the compiler is given this one in its place.
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

/// NVRTC's function of this name, called with [`CUDA_FP16_HEADER`] as an additional header: cudarc
/// passes none.
#[expect(unsafe_code, reason = "replaces a link")]
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut c_void,
    source: *const c_char,
    name: *const c_char,
    _: c_int,
    _: *const *const c_char,
    _: *const *const c_char,
) -> c_int {
    // SAFETY: `SharedLibrary::open` has stored the address of this function before any GPU is used.
    let create = unsafe {
        std::mem::transmute::<usize, CreateProgram>(NVRTC_CREATE_PROGRAM.load(Ordering::Acquire))
    };
    // SAFETY: the arguments are those of cudarc, and one header that is a constant.
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
