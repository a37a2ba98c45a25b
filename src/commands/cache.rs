//! `runner cache`

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration};
use secateur::pipeline::layers;
use secateur::pipeline::problem::InvalidPipeline;
use secateur::pipeline::settings::RunSettings;
use secateur::progress::format_clock;
use secateur::stages::registry::summary;
use secateur_base::locks::LockSupport;
use secateur_store::cache::{self, ListedProduct, ProductCache, RemovalSummary};
use serde_json::{Value, json};

use crate::commands::arguments::{CacheAction, CacheArgs, OutputFormat};
use crate::commands::output::{
    exit_with_error, print, print_json, print_to_stderr, report_invalid,
};

/// Lists, verifies or removes stored products.
pub(crate) fn cache(arguments: CacheArgs) -> ExitCode {
    let mut settings = match environment_settings() {
        Ok(settings) => settings,
        Err(invalid) => return report_invalid(&invalid, arguments.format),
    };
    if let Some(results) = arguments.results {
        settings.results = results;
    }
    let folder = arguments.cache.unwrap_or_else(|| settings.cache_folder());
    if !cache::is_cache(&folder) {
        let folder = folder.display();
        return exit_with_error(&format!("`{folder}` is no folder of kept products"));
    }
    let action = arguments.action.unwrap_or(CacheAction::List);
    if let CacheAction::List = action {
        // A listing only reads, so it does not open the cache for writing.
        let products = cache::list_products(&folder);
        return match arguments.format {
            OutputFormat::Json => print_json(&json!(products)),
            OutputFormat::Text => {
                let listing = format_listing(&products);
                print(&format!("{}\n\n{listing}", folder.display()))
            }
        };
    }
    match ProductCache::open(&folder, settings.cache_limit.as_u64()) {
        Ok(cache) => remove_products(&cache, action, arguments.format),
        Err(error) => exit_with_error(&error),
    }
}

/// The run settings without a pipeline: defaults and environment variables.
pub(crate) fn environment_settings() -> Result<RunSettings, InvalidPipeline> {
    layers::environment_settings().map_err(|problems| InvalidPipeline {
        name: "environment".to_owned(),
        problems,
    })
}

/// At most this many products that could not be removed are named one by one.
const MAX_NAMED_FAILURES: usize = 10;

/// Removes damaged or surplus products and says what was removed and what could not be. The exit
/// code tells whether anything could not be removed.
fn remove_products(cache: &ProductCache, action: CacheAction, format: OutputFormat) -> ExitCode {
    if cache.lock_support() == LockSupport::Missing {
        print_to_stderr(
            "the file system of the cache has no locks: \
             no other process may use the cache meanwhile\n",
        );
    }
    let summary = match action {
        CacheAction::Clean { limit } => cache.trim_to(limit.map_or(0, |limit| limit.as_u64())),
        // The caller handles `List`.
        CacheAction::Verify | CacheAction::List => cache.verify(),
    };
    let remaining = cache.list_products();
    match format {
        OutputFormat::Json => {
            print_json(&summary_json(&summary, &remaining));
        }
        OutputFormat::Text => {
            print(&summary_text(&summary, action, remaining.len()));
        }
    }
    let failures: Vec<String> = summary
        .failures
        .iter()
        .chain(cache.leftover_failures())
        .map(ToString::to_string)
        .collect();
    for failure in failures.iter().take(MAX_NAMED_FAILURES) {
        print_to_stderr(&format!("not removed: {failure}\n"));
    }
    if let Some(unnamed @ 1..) = failures.len().checked_sub(MAX_NAMED_FAILURES) {
        print_to_stderr(&format!("not removed: {unnamed} more\n"));
    }
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn summary_text(summary: &RemovalSummary, action: CacheAction, remaining_count: usize) -> String {
    let verb = if summary.removed_count == 1 {
        "was"
    } else {
        "were"
    };
    let mut text = match action {
        CacheAction::Clean { .. } => {
            let removed = count_products(summary.removed_count, "product");
            let size = HumanBytes(summary.removed_bytes);
            format!("{removed} {verb} removed, {size}\n")
        }
        CacheAction::Verify | CacheAction::List => {
            let removed = count_products(summary.removed_count, "damaged product");
            let whole_count = remaining_count.saturating_sub(summary.failures.len());
            format!("{removed} {verb} removed, {whole_count} are whole\n")
        }
    };
    if summary.in_use_count > 0 {
        let in_use = count_products(summary.in_use_count, "product");
        text.push_str(&format!("in use by another run, not removed: {in_use}\n"));
    }
    if !summary.failures.is_empty() {
        let stuck = count_products(summary.failures.len(), "product");
        text.push_str(&format!("{stuck} could not be removed\n"));
    }
    text
}

fn summary_json(summary: &RemovalSummary, remaining: &[ListedProduct]) -> Value {
    let failures: Vec<Value> = summary
        .failures
        .iter()
        .map(|error| json!({ "path": error.path, "error": error.to_string() }))
        .collect();
    json!({
        "removed": summary.removed_count,
        "removed_bytes": summary.removed_bytes,
        "in_use": summary.in_use_count,
        "not_removed": failures,
        "remaining": remaining,
    })
}

/// `1 product`, `3 products`.
fn count_products(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// One line per product, and a line with the totals.
fn format_listing(products: &[ListedProduct]) -> String {
    let mut text = String::new();
    for product in products {
        let last_use = HumanDuration(Duration::from_secs(product.seconds_since_use));
        let size = HumanBytes(product.bytes).to_string();
        let run_time = format_clock(product.wall_seconds);
        text.push_str(&format!(
            "{}  {size:>12}  took {run_time}  used {last_use:#} ago  {}{}\n",
            &product.key[..8],
            product.stage,
            summary(&product.stage, &product.options)
        ));
    }
    let count = count_products(products.len(), "product");
    let total_bytes = products.iter().map(|product| product.bytes).sum();
    text.push_str(&format!("{count}, {}\n", HumanBytes(total_bytes)));
    text
}
