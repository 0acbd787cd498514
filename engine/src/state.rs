//! A step's state: one enum, one table of legal transitions.
//!
//! ```text
//! Waiting ──▶ Hashing ──▶ Probing ──▶ Hit
//!    │           ▲           │ ├────▶ Known ──▶ NeedInputs        (a key, but no record)
//!    │           └───────────┤ └────▶ NeedInputs ──▶ Ready ──▶ Running ──▶ Done
//!    ├──────────▶ Probing    (content of inputs may match where their keys did not)
//!    ├──────────▶ NeedInputs (`--no-cache`, or nothing can match; by way of Hashing where there are contents)
//!    └──────────▶ Done       (sources that are known without doing anything)
//! Hit, Done ──▶ NeedInputs   (the result turned out to be lost)
//! Ready, Running ──▶ their predecessor when an input's result was lost; NeedInputs ──▶ Waiting when that input had been
//! hashed, since it may come out otherwise now; any ──▶ Failed
//! ```

/// Why a step runs instead of being found in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// `--no-cache` or `--no-cache-filter`.
    NoCache,
    /// No record of this definition on these inputs.
    NotInCache,
    /// The key is known, but its record was pruned.
    Pruned,
    /// The record's layers are lost or damaged.
    Lost,
    /// It is a source that has to be looked at each time.
    Source,
}

/// A step's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepState {
    /// Some input's keys are not settled.
    Waiting,
    /// Contents of inputs are being hashed.
    Hashing,
    /// The index is being asked.
    Probing,
    /// Its keys are known, its result is not there, and nobody needs it so far.
    Known,
    /// It has to run; some input's result is missing.
    NeedInputs(Why),
    /// It may run and waits for a free place.
    Ready(Why),
    /// It runs.
    Running(Why),
    /// Found in the cache.
    Hit,
    /// It ran.
    Done,
    /// It failed; so does the build.
    Failed,
}

impl StepState {
    /// Whether its keys are as final as they get before it runs.
    #[must_use]
    pub fn settled(self) -> bool {
        matches!(self, Self::Known | Self::Hit | Self::Done)
    }

    /// Whether its result is there.
    #[must_use]
    pub fn has_result(self) -> bool {
        matches!(self, Self::Hit | Self::Done)
    }

    /// Whether the table at the head of this file has an arrow from `self` to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use StepState::{Done, Failed, Hashing, Hit, Known, NeedInputs, Probing, Ready, Running, Waiting};
        match (self, next) {
            (Failed, _) => false,
            (_, Failed)
            | (Waiting, Hashing | Probing | NeedInputs(_) | Done)
            | (Hashing, Probing | NeedInputs(_))
            | (Probing, Hit | Known | Hashing | NeedInputs(_))
            | (Known | Hit | Done, NeedInputs(_)) => true,
            (NeedInputs(a), Ready(b)) | (Ready(a), Running(b)) | (Ready(a) | Running(a), NeedInputs(b)) => {
                a == b
            }
            (Running(_), Done) | (NeedInputs(_), Waiting) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_no_way_back_from_failure_and_none_around_running() {
        let all = [
            StepState::Waiting,
            StepState::Hashing,
            StepState::Probing,
            StepState::Known,
            StepState::NeedInputs(Why::NotInCache),
            StepState::Ready(Why::NotInCache),
            StepState::Running(Why::NotInCache),
            StepState::Hit,
            StepState::Done,
            StepState::Failed,
        ];
        for state in all {
            assert!(!StepState::Failed.may_become(state));
            assert_eq!(state.may_become(StepState::Failed), state != StepState::Failed);
            let to_done = matches!(state, StepState::Running(_) | StepState::Waiting);
            assert_eq!(state.may_become(StepState::Done), to_done, "{state:?}");
        }
    }
}
