//! The test harness: `libtest-mimic` in place of the one that the compiler provides.
//!
//! A test declares what it needs besides the repository. Where that is missing, the test does not
//! start and is reported as `ignored` with the reason, so the summary of `cargo test` counts what
//! was not run. The compiler's own harness has no such outcome: a test can only pass or fail.

use std::any::Any;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use secateur_tensor::Device;

/// Something outside the repository without which a test cannot run.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// A file or folder of the shared reference material, relative to its root.
    Shared(&'static str),
    /// The device that is compared with the CPU, see [`comparison_device`].
    ComparisonDevice,
}

/// A test that `test!` registered.
pub(crate) struct TestCase {
    pub module: &'static str,
    pub name: &'static str,
    pub needs: &'static [Need],
    pub run: fn(),
}

inventory::collect!(TestCase);

/// Registers the function below it as a test:
///
/// ```ignore
/// test!(every_task_is_listed);
/// fn every_task_is_listed() { … }
///
/// test!(logits_equal_transformers, needs = [Shared("models/stories260K")]);
/// fn logits_equal_transformers() { … }
/// ```
///
/// `needs` is an array of [`Need`]s. A function without a `test!` line is never run, and the
/// compiler warns that it is unused. `#[test]` has no effect in a binary with its own harness;
/// `structure::no_test_bypasses_the_harness` rejects it.
macro_rules! test {
    ($name:ident) => {
        test!($name, needs = []);
    };
    ($name:ident, needs = $needs:expr) => {
        inventory::submit! {
            $crate::support::harness::TestCase {
                module: module_path!(),
                name: stringify!($name),
                needs: {
                    use $crate::support::harness::Need::{self, ComparisonDevice, Shared};
                    // Uses both names, because `$needs` may use neither.
                    const _: (fn(&'static str) -> Need, Need) = (Shared, ComparisonDevice);
                    &$needs
                },
                run: $name,
            }
        }
    };
}

/// Environment variable under which missing shared material is a failure. `.ci/run` sets it
/// where the material exists.
const REQUIRE_SHARED: &str = "SECATEUR_REQUIRE_SHARED";

/// Whether `note!` prints: under `--nocapture` or `--show-output`.
static SHOWS_NOTES: AtomicBool = AtomicBool::new(false);

pub(crate) fn shows_notes() -> bool {
    SHOWS_NOTES.load(Ordering::Relaxed)
}

/// Prints a measured value, such as the largest difference to a reference, under `--nocapture`.
macro_rules! note {
    ($($argument:tt)*) => {
        if $crate::support::harness::shows_notes() {
            eprintln!($($argument)*);
        }
    };
}

/// Runs the tests that the command line selects. Accepts the options of the compiler's harness:
/// filters, `--list`, `--exact`, `--skip`, `--test-threads`, `--nocapture` and others.
pub(crate) fn main() -> ExitCode {
    let (arguments, filters) = separate_filters(std::env::args());
    let arguments = Arguments::from_iter(arguments);
    SHOWS_NOTES.store(
        arguments.nocapture || arguments.show_output,
        Ordering::Relaxed,
    );
    let mut trials: Vec<Trial> = inventory::iter::<TestCase>
        .into_iter()
        .map(TestCase::trial)
        .collect();
    trials.sort_by(|a, b| a.name().cmp(b.name()));
    if !filters.is_empty() {
        let is_exact = arguments.exact;
        trials.retain(|trial| {
            let name = trial.name();
            let mut filters = filters.iter();
            filters.any(|filter| {
                if is_exact {
                    name == filter
                } else {
                    name.contains(filter)
                }
            })
        });
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Takes the filters out of the arguments where there are several: the compiler's harness runs the
/// tests that match any of them, `libtest-mimic` accepts only one.
fn separate_filters(arguments: impl Iterator<Item = String>) -> (Vec<String>, Vec<String>) {
    const WITH_VALUE: [&str; 6] = [
        "--test-threads",
        "--skip",
        "--logfile",
        "--color",
        "--format",
        "-Z",
    ];
    let (mut options, mut filters) = (Vec::new(), Vec::new());
    // The first argument is the program: it is taken over like the value of an option.
    let mut is_value = true;
    for argument in arguments {
        if is_value || argument.starts_with('-') {
            is_value = WITH_VALUE.contains(&argument.as_str());
            options.push(argument);
        } else {
            filters.push(argument);
        }
    }
    if filters.len() == 1 {
        options.append(&mut filters);
    }
    (options, filters)
}

test!(several_filters_are_taken_out_of_the_arguments);
fn several_filters_are_taken_out_of_the_arguments() {
    let separated = |text: &str| {
        let arguments = text.split(' ').map(str::to_owned);
        let (options, filters) = separate_filters(arguments);
        (options.join(" "), filters.join(" "))
    };
    let expected = |options: &str, filters: &str| (options.to_owned(), filters.to_owned());
    assert_eq!(
        separated("main a:: --test-threads 1 b:: --exact"),
        expected("main --test-threads 1 --exact", "a:: b::")
    );
    assert_eq!(
        separated("main --skip x a::"),
        expected("main --skip x a::", "")
    );
}

impl TestCase {
    /// The name without the name of the binary: `golden::model::logits_equal_transformers`.
    fn full_name(&self) -> String {
        let module = self.module.split_once("::").map_or("", |(_, inner)| inner);
        [module, self.name]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join("::")
    }

    fn trial(&'static self) -> Trial {
        Trial::ignorable_test(self.full_name(), || self.run_if_possible())
    }

    fn run_if_possible(&'static self) -> Result<Completion, Failed> {
        let shared_is_required = std::env::var_os(REQUIRE_SHARED).is_some_and(|value| value == "1");
        for need in self.needs {
            let Err(reason) = need.check() else { continue };
            if shared_is_required && matches!(need, Need::Shared(_)) {
                return Err(format!("{reason} ({REQUIRE_SHARED} is set)").into());
            }
            return Ok(Completion::ignored_with(reason));
        }
        self.run_on_its_own_thread()?;
        Ok(Completion::Completed)
    }

    /// Runs the test on a thread of its own. Two reasons: the selected device and the GPU weight
    /// cache are thread-local, so tests on a shared thread would see each other's settings; and
    /// the message of a panic names its thread, which is then the test.
    fn run_on_its_own_thread(&'static self) -> Result<(), Failed> {
        let thread = std::thread::Builder::new()
            .name(self.full_name())
            .spawn(self.run)
            .map_err(|error| format!("cannot start a thread for the test: {error}"))?;
        thread
            .join()
            .map_err(|payload| Failed::from(panic_message(payload.as_ref())))
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("the test panicked with a payload that is not text")
        .to_owned()
}

impl Need {
    /// The reason why a test cannot run, if this is missing.
    fn check(self) -> Result<(), String> {
        match self {
            Self::Shared(path) => find_shared(path).map(drop).ok_or_else(|| {
                let root = shared_root();
                format!("no `{path}` in {} (SECATEUR_SHARED)", root.display())
            }),
            Self::ComparisonDevice => comparison_device().map(drop),
        }
    }
}

/// The folder of the shared reference material: `SECATEUR_SHARED`, or `shared` beside the project.
fn shared_root() -> PathBuf {
    std::env::var_os("SECATEUR_SHARED")
        .map_or_else(|| super::project_root().join("../shared"), PathBuf::from)
}

/// A file or folder of the shared material, or `None` where it is missing.
pub(crate) fn find_shared(path: &str) -> Option<PathBuf> {
    let found = shared_root().join(path);
    found.exists().then_some(found)
}

/// A file or folder of the shared material.
///
/// # Panics
/// Where it is missing, because the test did not declare it: see [`Need::Shared`].
pub(crate) fn shared(path: &str) -> PathBuf {
    find_shared(path).unwrap_or_else(|| {
        panic!("the shared material has no `{path}`, and the test does not declare it in `needs`")
    })
}

/// The device that tests compare with the CPU. A build with CUDA takes GPU 0 and fails here where
/// there is none; a build without CUDA runs the GPU's operations on dfdx's CPU device.
pub(crate) fn comparison_device() -> Result<Device, String> {
    let device = if cfg!(feature = "cuda") {
        Device::Cuda(0)
    } else {
        Device::CpuAsGpu
    };
    secateur_tensor::resolve_device(device)
        .map_err(|error| format!("there is no `{device}` to compare with the CPU: {error}"))
}
