//! The end of the program after a failure of the GPU.

use crate::commands::output::print_to_stderr;

/// Ends the program with exit code 1 when a call of CUDA fails for another reason than memory.
///
/// dfdx reports a failed call by a panic. After such a failure every further call fails as well,
/// those that free GPU memory included: unwinding would panic again while it drops tensors and
/// abort the process. Products that were stored before the failure are complete on disk. A GPU
/// without free memory still works, so `CUDA_ERROR_OUT_OF_MEMORY` unwinds and fails one stage.
pub(crate) fn install_panic_hook() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        let is_cuda_failure =
            message.contains("CUDA_ERROR_") && !message.contains("CUDA_ERROR_OUT_OF_MEMORY");
        if is_cuda_failure {
            print_to_stderr(&format!(
                "the GPU failed: {message}\nwhat was complete is kept: run it again to go on\n"
            ));
            // Exits without destructors, which would call CUDA.
            signal_hook::low_level::exit(1);
        }
        default_hook(panic);
    }));
}
