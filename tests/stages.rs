//! Promises of single stages that no golden number holds.

use secateur::stages::{aggregate, dependencies, importance, prune};
use secateur_model::walk::{self, BackwardOptions, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::TensorId;
use secateur_model::{Model, ParameterId};
use secateur_tensor::ops::{GradientQuery, GradientResult};
use serde_json::json;

use crate::support::{Sandbox, context, table, tiny};

/// The gradient of a tied embedding, both uses together.
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

/// Both uses of a tied embedding make one gradient, which the Fisher diagonal squares whole.
#[test]
fn the_second_order_of_a_tied_embedding_squares_the_whole_gradient() {
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
        );
        for (i, (w, g)) in model.embedding.values().iter().zip(&tied.0).enumerate() {
            expected[i % width] += f64::from(*w).powi(2) * f64::from(*g).powi(2) / 2.0;
        }
    }
    let at = graph.groups[0]
        .members
        .iter()
        .position(|member| member.tensor_id == TensorId::Embedding)
        .unwrap();
    let scored = scores.groups[0]
        .iter()
        .find(|scored| scored.member_index == at)
        .unwrap();
    let worst = scored
        .channels
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a / b - 1.0).abs())
        .fold(0.0, f64::max);
    assert!(worst < 1e-4, "{worst:.1e}");
}

/// A product over many members leaves the range of numbers; the order of the units must not be lost with it.
#[test]
fn a_product_that_leaves_the_range_of_numbers_keeps_the_order() {
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
        // powers of two: the order stays to the last bit, the products of squares fall below 1e-308
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

/// The ratio of a `prune` in a `repeat` counts against its own groups' widths at the beginning.
#[test]
fn two_prunings_of_a_repeat_have_baselines_of_their_own() {
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

/// What the table of a sweep says of a pipeline with evaluations in several places.
#[test]
fn the_table_takes_each_number_from_its_place() {
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
    // nothing was measured after the pruning: no number, rather than the dense model's
    let (row, values) = variants("none", format!("{load}{}{prune}", measure("a.jsonl")));
    assert_eq!(
        (
            number(&row, "a.perplexity"),
            number(&row, "a.perplexity.dense")
        ),
        (None, Some(values[0]))
    );
    // two evaluations of the pruned model, each with a metric of its own
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

/// Ranges of layers that only show in a run: the model has fewer layers than the checkpoint.
#[test]
fn a_range_beyond_a_model_that_lost_layers_is_an_error_by_name() {
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
