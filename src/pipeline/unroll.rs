//! Tables of stages → stages, as they are written and with every `repeat` unrolled.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::pipeline::decode::Decoded;
use crate::pipeline::file::{DecodedStage, RawStage};
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::stages::repeat::MAX_TIMES;
use crate::stages::step::{ListedStage, Step, UnrolledStage};
use crate::stages::{RepeatPosition, Stage};

/// The stages of one variant.
#[derive(Default)]
pub(crate) struct DecodedStages {
    /// As they are written; stages that cannot be decoded are missing.
    pub listed: Vec<ListedStage>,
    /// Every stage in the order in which it runs.
    pub unrolled: Vec<UnrolledStage>,
}

impl DecodedStages {
    pub(crate) fn decode(
        raw_stages: &[RawStage<'_>],
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut decoded = Self::default();
        for raw in raw_stages {
            let Some(Decoded {
                value,
                replaced_keys,
            }) = raw.decode(sources, problems)
            else {
                let invalid = UnrolledStage::Invalid(raw.tag.clone());
                decoded.unrolled.push(invalid);
                continue;
            };
            match value {
                DecodedStage::Stage(stage) => {
                    decoded.add_step(&stage, &replaced_keys, raw, None);
                    decoded.listed.push(ListedStage::Stage(stage));
                }
                DecodedStage::Repeat(options) => {
                    decoded.add_repeat(options.times, raw, sources, problems);
                }
            }
        }
        decoded
    }

    fn add_repeat(
        &mut self,
        times: u32,
        raw_repeat: &RawStage<'_>,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) {
        let iterations = times.clamp(1, MAX_TIMES);
        let raw_stages = &raw_repeat.repeated_stages;
        // Decoded once, so that a problem is not reported for every iteration. `file::parse`
        // refuses a `repeat` inside a `repeat`.
        let stages: Vec<Option<Decoded<Arc<dyn Stage>>>> = raw_stages
            .iter()
            .map(|raw| {
                let decoded = raw.decode(sources, problems)?;
                match decoded.value {
                    DecodedStage::Stage(value) => Some(Decoded {
                        value,
                        replaced_keys: decoded.replaced_keys,
                    }),
                    DecodedStage::Repeat(_) => None,
                }
            })
            .collect();
        for iteration in 1..=iterations {
            for (stage, raw) in stages.iter().zip(raw_stages) {
                let position = RepeatPosition {
                    iteration,
                    iterations,
                };
                match stage {
                    Some(stage) => {
                        self.add_step(&stage.value, &stage.replaced_keys, raw, Some(position));
                    }
                    None => self.unrolled.push(UnrolledStage::Invalid(raw.tag.clone())),
                }
            }
        }
        self.listed.push(ListedStage::Repeat {
            times: iterations,
            stages: stages
                .into_iter()
                .flatten()
                .map(|stage| stage.value)
                .collect(),
        });
    }

    fn add_step(
        &mut self,
        stage: &Arc<dyn Stage>,
        replaced_keys: &BTreeSet<String>,
        raw: &RawStage<'_>,
        position: Option<RepeatPosition>,
    ) {
        // The number of earlier steps of the same type.
        let same_type_steps = self.unrolled.iter().filter(|earlier| {
            matches!(earlier, UnrolledStage::Step(step) if step.stage.tag() == stage.tag())
        });
        let occurrence = same_type_steps.count() as u32;
        self.unrolled.push(UnrolledStage::Step(Step {
            position: self.unrolled.len() as u32,
            stage: stage.clone(),
            repeat_position: position.filter(|_| stage.stage_type().uses_repeat_position),
            occurrence,
            span: raw.type_span.clone(),
            key_spans: raw.key_spans(),
            replaced_keys: replaced_keys.clone(),
            unused_options: Vec::new(),
        }));
    }
}
