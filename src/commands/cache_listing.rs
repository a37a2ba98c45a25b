//! The listing of `runner cache`.

use std::time::Duration;

use secateur::progress::format_clock;
use secateur::stages::registry::summary;
use secateur_store::cache::ListedProduct;

/// A listing as a person reads it.
pub fn format_listing(listed: &[ListedProduct]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for ListedProduct {
        key,
        stage,
        options,
        bytes,
        seconds_since_use,
        wall_seconds,
    } in listed
    {
        let used = indicatif::HumanDuration(Duration::from_secs(*seconds_since_use));
        let (size, took) = (
            indicatif::HumanBytes(*bytes).to_string(),
            format_clock(*wall_seconds),
        );
        lines.push(format!(
            "{}  {size:>12}  took {took}  used {used:#} ago  {stage}{}",
            &key[..8],
            summary(stage, options)
        ));
    }
    let total = indicatif::HumanBytes(listed.iter().map(|listed| listed.bytes).sum());
    let number = if listed.len() == 1 {
        "1 product".to_owned()
    } else {
        format!("{} products", listed.len())
    };
    lines.push(format!("{number}, {total}"));
    lines.join("\n") + "\n"
}
