//! Tests of the cache protocol.

use std::collections::BTreeMap;

use serde_json::Map;

use super::*;

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// Stores a product with one written file under `KEY`.
fn store_product(cache: &ProductCache) -> StoredProduct {
    let draft = cache.new_draft().expect("a draft");
    fs::write(draft.written_folder().join("plan.json"), "{}").expect("written");
    let manifest = ProductManifest {
        stage: "prune".to_owned(),
        options: Map::new(),
        program: "test".to_owned(),
        cost: ProductCost::default(),
        files: BTreeMap::new(),
    };
    cache.store(KEY, draft, manifest, &[]).expect("stored")
}

#[test]
fn a_stored_product_is_found_until_a_file_is_damaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = ProductCache::open(folder.path(), u64::MAX).expect("opened");
    assert!(is_cache(folder.path()) && cache.get(KEY).is_none());
    let stored = store_product(&cache);
    assert_eq!(
        stored.written_files().into_keys().collect::<Vec<_>>(),
        ["plan.json"]
    );
    assert!(cache.get(KEY).is_some() && read_complete_manifest(folder.path(), KEY).is_some());
    fs::write(stored.written_folder().join("plan.json"), "[]").expect("written");
    assert!(cache.get(KEY).is_none(), "the content has changed");
    assert!(cache.list_products().is_empty(), "the product is removed");
}

#[test]
fn a_claimed_product_is_not_trimmed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = ProductCache::open(folder.path(), u64::MAX).expect("opened");
    store_product(&cache);
    let claim = cache
        .wait_for_claim(KEY, &AtomicBool::new(false))
        .expect("locked");
    let other = ProductCache::open(folder.path(), u64::MAX).expect("opened");
    let stop = AtomicBool::new(true);
    assert!(other.wait_for_claim(KEY, &stop).expect("locked").is_none());
    let begin = Instant::now();
    let patience = Duration::from_millis(60);
    assert!(other.claim_within(KEY, patience).expect("locked").is_none());
    assert!(begin.elapsed() >= patience);
    let kept = other.trim_to(0);
    assert_eq!((kept.removed_count, kept.in_use_count), (0, 1));
    drop(claim);
    let removed = other.trim_to(0);
    assert_eq!((removed.removed_count, removed.removed_bytes), (1, 2));
}
