//! Behaviour of single stages for which there is no golden number.

use secateur::stages::{aggregate, dependencies, importance, prune};
use secateur_model::walk::{self, BackwardOptions, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::TensorId;
use secateur_model::{Model, ParameterId};
use secateur_tensor::ops::{GradientQuery, GradientResult};
use serde_json::json;

use crate::support::{Sandbox, context, largest, table, tiny};

/// Collects the gradient of a tied embedding, summed over both of its uses.
#[derive(Default)]
struct Tied(Vec<f32>);

impl GradientVisitor for Tied {
    fn query(&self, parameter: ParameterId, _: &Pack) -> Option<GradientQuery> {
        let is_tied = matches!(
            parameter,
            ParameterId::Weight(TensorId::LmHead | TensorId::Embedding)
        );
        is_tied.then_some(GradientQuery::Gradient)
    }

    fn receive(&mut self, _: ParameterId, _: &Pack, result: GradientResult) {
        let GradientResult::Gradient { gradient, .. } = result else {
            panic!("the query is for a gradient")
        };
        let gradient = gradient.into_vec();
        self.0.resize(gradient.len(), 0.0);
        self.0
            .iter_mut()
            .zip(gradient)
            .for_each(|(sum, g)| *sum += g);
    }
}

test!(second_order_score_squares_the_summed_gradient_of_a_tied_embedding);
/// The gradient of a tied embedding is the sum over both uses; the Fisher diagonal squares that
/// sum.
fn second_order_score_squares_the_summed_gradient_of_a_tied_embedding() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("rows.jsonl");
    let rows = [vec![0u32, 5, 9, 300, 44, 7], vec![0, 301, 5, 6, 90]];
    std::fs::write(
        &corpus,
        rows.iter()
            .map(|ids| format!("{{\"ids\": {ids:?}}}\n"))
            .collect::<String>(),
    )
    .unwrap();
    let graph = dependencies::run(
        &serde_json::from_value(json!({ "grouping": "channel" })).unwrap(),
        &model,
    )
    .unwrap();
    let options = json!({ "method": "taylor", "taylor": "element-second", "corpus": corpus, "sample": "file" });
    let scores = importance::run(
        &serde_json::from_value(options).unwrap(),
        &context(),
        &model,
        &graph,
    )
    .unwrap()
    .0;
    let width = model.config.hidden;
    let mut expected = vec![0f64; width];
    for ids in rows {
        let counts = vec![true; ids.len()];
        let mut tied = Tied::default();
        walk::backward(
            &model,
            &[Sequence::new(ids, &counts)],
            &BackwardOptions::default(),
            &mut tied,
        )
        .unwrap();
        for (i, (w, g)) in model.embedding.values().iter().zip(&tied.0).enumerate() {
            expected[i % width] += f64::from(*w).powi(2) * f64::from(*g).powi(2) / 2.0;
        }
    }
    let embedding_member = graph.groups[0]
        .members
        .iter()
        .position(|member| member.tensor_id == TensorId::Embedding)
        .unwrap();
    let scored = scores.groups[0]
        .iter()
        .find(|scored| scored.member_index == embedding_member)
        .unwrap();
    assert_eq!(scored.channels.len(), expected.len());
    let pairs = scored.channels.iter().zip(&expected);
    let worst = largest(pairs.map(|(found, expected)| (found / expected - 1.0).abs()));
    assert!(worst < 1e-4, "{worst:.1e}");
}

test!(underflowing_product_keeps_the_order_of_units);
/// A product over many members can underflow; the order of the units must survive.
fn underflowing_product_keeps_the_order_of_units() {
    let mut model = tiny();
    let graph = dependencies::run(&serde_json::from_value(json!({})).unwrap(), &model).unwrap();
    let scored = |model: &Model| {
        let options = serde_json::from_value(json!({ "method": "l2" })).unwrap();
        let scores = importance::run(&options, &context(), model, &graph)
            .unwrap()
            .0;
        let options = serde_json::from_value(json!({ "with": "product" })).unwrap();
        aggregate::run(&options, model, &graph, &scores)
            .unwrap()
            .0
            .groups
    };
    let order = |scores: &[f64]| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        order
    };
    let before = scored(&model);
    for place in model.tensor_ids() {
        // Scaling by powers of two keeps the order exactly, and the products of squares fall below
        // 1e-308.
        model.weight_mut(place).update(|w| {
            w.iter_mut()
                .for_each(|w| *w *= 2f32.powi(-60) * 2f32.powi(-60))
        });
    }
    let after = scored(&model);
    for (group, (before, after)) in graph.groups.iter().zip(before.iter().zip(&after)) {
        assert_eq!(
            order(before),
            order(after),
            "{} {}",
            group.kind.name(),
            group.layer
        );
        assert!(after.iter().all(|score| *score > 0.0 && score.is_finite()));
    }
}

test!(two_prunings_in_a_repeat_have_separate_baselines);
/// The ratio of a `prune` inside a `repeat` refers to the widths of its own groups before the first
/// iteration.
fn two_prunings_in_a_repeat_have_separate_baselines() {
    let sandbox = Sandbox::new();
    let inner = |grouping: &str, ratio: f64| {
        format!(
            "[[stage.stage]]\ntype = \"dependencies\"\ngrouping = \"{grouping}\"\n[[stage.stage]]\ntype = \"importance\"\nmethod = \"l1\"\n[[stage.stage]]\ntype = \"aggregate\"\n[[stage.stage]]\ntype = \"prune\"\nratio = {ratio}\n"
        )
    };
    let text = format!(
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n[[stage]]\ntype = \"repeat\"\ntimes = 2\n{}{}[[stage]]\ntype = \"export\"\nformats = [\"plan\"]\n",
        inner("layer", 0.5),
        inner("block", 0.5)
    );
    sandbox.write("twice.toml", text);
    let ran = sandbox.run(&["twice.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let variant = sandbox.variant("twice", "base-");
    let plan = sandbox.json(&format!("{variant}/plan.json"));
    for group in plan["groups"].as_array().unwrap() {
        let (units, kept) = (
            group["units"].as_u64().unwrap() as usize,
            group["kept"].as_array().unwrap().len(),
        );
        let gone_with_its_layer = group["kind"] != "layer" && kept > units / 2;
        assert!(kept == units / 2 || gone_with_its_layer, "{group}");
    }
    let layers = plan["groups"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["kind"] == "layer")
        .unwrap();
    assert_eq!(layers["kept"].as_array().unwrap().len(), 3);
}

test!(sweep_table_takes_each_number_from_its_evaluation);
/// Which evaluation each number of the sweep's table comes from, in pipelines with several of them.
fn sweep_table_takes_each_number_from_its_evaluation() {
    let sandbox = Sandbox::new();
    sandbox.write("a.jsonl", "{\"ids\": [0, 5, 9, 300, 44]}");
    sandbox.write("b.jsonl", "{\"ids\": [0, 44, 300, 9]}");
    let measure =
        |corpus: &str| format!("[[stage]]\ntype = \"evaluate\"\ncorpora = [\"{corpus}\"]\n");
    let prune = "[[stage]]\ntype = \"dependencies\"\n[[stage]]\ntype = \"importance\"\nmethod = \"l1\"\n[[stage]]\ntype = \"aggregate\"\n[[stage]]\ntype = \"prune\"\nratio = 0.5\n";
    let load = "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n";
    let variants = |name: &str, text: String| {
        sandbox.write(&format!("{name}.toml"), text);
        let ran = sandbox.run(&[&format!("{name}.toml")]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let folder = sandbox.variant(name, "base-");
        let measured = table(&sandbox.path(&format!("{folder}/evaluate.parquet")));
        use arrow::array::AsArray;
        let values = measured["value"]
            .as_primitive::<arrow::datatypes::Float64Type>()
            .values()
            .to_vec();
        (
            table(&sandbox.path(&format!("results/{name}/variants.parquet"))),
            values,
        )
    };
    let number = |row: &arrow::array::RecordBatch, name: &str| {
        use arrow::array::{Array, AsArray};
        let column = row[name].as_primitive::<arrow::datatypes::Float64Type>();
        column.is_valid(0).then(|| column.value(0))
    };
    // Nothing was measured after the pruning: the value is null, not the dense model's.
    let (row, values) = variants("none", format!("{load}{}{prune}", measure("a.jsonl")));
    assert_eq!(
        (
            number(&row, "a.perplexity"),
            number(&row, "a.perplexity.dense")
        ),
        (None, Some(values[0]))
    );
    // Two evaluations of the pruned model, each with its own metric.
    let (row, values) = variants(
        "two",
        format!(
            "{load}{}{prune}{}{}",
            measure("a.jsonl"),
            measure("a.jsonl"),
            measure("b.jsonl")
        ),
    );
    assert_eq!(
        (number(&row, "a.perplexity"), number(&row, "b.perplexity")),
        (Some(values[1]), Some(values[2]))
    );
    assert_eq!(
        number(&row, "a.perplexity.delta"),
        Some(values[1] - values[0])
    );
}

test!(layer_range_beyond_a_pruned_model_is_an_error);
/// A layer range that only the run can reject: the pruned model has fewer layers than the
/// checkpoint.
fn layer_range_beyond_a_pruned_model_is_an_error() {
    let model = tiny();
    let options = serde_json::from_value(json!({ "mlp_layers": [0, 7] })).unwrap();
    let error = dependencies::run(&options, &model).unwrap_err().to_string();
    assert_eq!(
        error,
        "the layer range [0, 7] reaches beyond the model's 6 layers"
    );
    let graph = dependencies::run(
        &serde_json::from_value(json!({ "grouping": "layer" })).unwrap(),
        &model,
    )
    .unwrap();
    let scores = importance::run(
        &serde_json::from_value(json!({ "method": "first" })).unwrap(),
        &context(),
        &model,
        &graph,
    )
    .unwrap()
    .0;
    let units = aggregate::run(&Default::default(), &model, &graph, &scores)
        .unwrap()
        .0;
    let options: prune::Options = serde_json::from_value(json!({ "ratio": 0.5 })).unwrap();
    let pruned = prune::run(&options, None, &model, &graph, &units, None)
        .unwrap()
        .1;
    assert_eq!(
        pruned.plan.groups[0].kept,
        [0, 1, 2],
        "`first` keeps the first layers"
    );
}
