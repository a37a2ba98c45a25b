//! `runner cache`

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration};
use secateur::pipeline::layers;
use secateur::pipeline::problem::InvalidPipeline;
use secateur::pipeline::settings::RunSettings;
use secateur::progress::format_clock;
use secateur::stages::registry::summary;
use secateur_store::cache::{self, ListedProduct, ProductCache};

use crate::commands::arguments::{CacheAction, CacheArgs, OutputFormat};
use crate::commands::output::{exit_with_error, print, print_json, report_invalid};

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
            OutputFormat::Json => print_json(&serde_json::json!(products)),
            OutputFormat::Text => {
                let listing = format_listing(&products);
                print(&format!("{}\n\n{listing}", folder.display()))
            }
        };
    }
    match ProductCache::open(&folder, settings.cache_limit.as_u64()) {
        Ok(cache) => print(&remove_products(&cache, action)),
        Err(error) => exit_with_error(&error),
    }
}

/// The run settings without a pipeline: defaults and environment variables.
fn environment_settings() -> Result<RunSettings, InvalidPipeline> {
    layers::environment_settings().map_err(|problems| InvalidPipeline {
        name: "environment".to_owned(),
        problems,
    })
}

/// Removes damaged or surplus products and returns a line that says what was removed.
fn remove_products(cache: &ProductCache, action: CacheAction) -> String {
    match action {
        CacheAction::Clean { limit } => {
            let limit_bytes = limit.map_or(0, |limit| limit.as_u64());
            let (removed, bytes) = cache.trim_to(limit_bytes);
            let size = HumanBytes(bytes);
            format!("{removed} products were removed, {size}\n")
        }
        // The caller handles `List`.
        CacheAction::Verify | CacheAction::List => {
            let damaged_count = cache.verify();
            let whole_count = cache.list_products().len();
            format!("{damaged_count} damaged products were removed, {whole_count} are whole\n")
        }
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
    let count = match products.len() {
        1 => "1 product".to_owned(),
        count => format!("{count} products"),
    };
    let total_bytes = products.iter().map(|product| product.bytes).sum();
    text.push_str(&format!("{count}, {}\n", HumanBytes(total_bytes)));
    text
}
