//! The hooks around a snapshot, and the consistency that follows from them.

use std::str::FromStr;

/// An enum whose values are stored and shown as fixed words.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownVariant;

            fn from_str(word: &str) -> Result<Self, UnknownVariant> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownVariant),
                }
            }
        }
    };
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("is not a word that this version knows")]
pub struct UnknownVariant;

string_enum! {
    /// The state of a disk after it is restored.
    Consistency {
        /// As after a power cut.
        Crash = "crash",
        /// A program in the guest, or around it, prepared the disk for the snapshot.
        Quiesced = "quiesced",
    }
}

string_enum! {
    /// How a hook is called.
    HookKind {
        /// A program in the hook directory.
        Directory = "directory",
        /// A request to a server in the guest.
        Sync = "sync",
    }
}

string_enum! {
    HookStage {
        /// Before the operation.
        Pre = "pre",
        /// After the operation.
        Post = "post",
    }
}

string_enum! {
    HookOutcome {
        Ok = "ok",
        /// It reported a failure, or could not be called.
        Failed = "failed",
        /// It ran too long and was killed.
        Timeout = "timeout",
        /// It was not called.
        Skipped = "skipped",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRun {
    /// The program's file name, or the server's URL.
    pub name: String,
    pub kind: HookKind,
    pub stage: HookStage,
    pub outcome: HookOutcome,
    pub duration_ms: u64,
    /// How it ended, for people.
    pub detail: String,
}

/// Added to the detail of a failed post hook whose pre hook said "quiesced".
const NOT_QUIESCED: &str = "the freeze may have ended before the disks were cloned, so it does not count as quiesced";

impl HookRun {
    /// Records on a failed post hook that its pre hook's "quiesced" does not count.
    pub fn deny_quiesced(&mut self) {
        let separator = if self.detail.is_empty() { "" } else { "; " };
        self.detail = format!("{}{separator}{NOT_QUIESCED}", self.detail);
    }

    /// Whether [`HookRun::deny_quiesced`] was called on this run.
    pub fn denies_quiesced(&self) -> bool {
        self.detail.ends_with(NOT_QUIESCED)
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, HookOutcome::Failed | HookOutcome::Timeout)
    }
}
