use secateur::{progress::Progress, random::Seed, stages::*};
fn main() {
    tracing_subscriber::fmt().init();
    let a: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&a[1]).unwrap();
    let o: pretrain::Options = toml::from_str(&text).unwrap();
    let ctx = Context {
        seed: Seed::root(42).derive("pretrain 0"),
        data: None,
        folder: a[2].clone().into(),
        progress: Progress::lines(),
        stop: Default::default(),
    };
    let t = std::time::Instant::now();
    let (model, _) = pretrain::run(&o, &ctx).unwrap();
    println!("trained {:?}", t.elapsed());
    export::run(&export::Options::default(), &ctx, &model, None).unwrap();
}
