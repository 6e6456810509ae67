//! What ran around a snapshot, and what that makes of it.

use std::str::FromStr;

/// A value that is told as one stable word.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The word for it.
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

/// A word that stands for nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("is no word that this version knows")]
pub struct UnknownVariant;

string_enum! {
    /// What a disk of a snapshot is like when it is restored.
    Consistency {
        /// As after a power cut.
        Crash = "crash",
        /// As something inside the guest, or around it, has put it in order for the snapshot.
        Quiesced = "quiesced",
    }
}

string_enum! {
    /// By which way a hook is called.
    HookKind {
        /// A program in the directory of hooks.
        Directory = "directory",
        /// A request to a server in the guest.
        Sync = "sync",
    }
}

string_enum! {
    /// When a hook is called.
    HookStage {
        /// Before the operation.
        Pre = "pre",
        /// After it.
        Post = "post",
    }
}

string_enum! {
    /// How a hook ended.
    HookOutcome {
        /// It did what it should.
        Ok = "ok",
        /// It did not, or could not be called.
        Failed = "failed",
        /// It took too long, and was ended.
        Timeout = "timeout",
        /// It was not called.
        Skipped = "skipped",
    }
}

/// One call of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRun {
    /// The program's file name, or the server's URL.
    pub name: String,
    /// By which way it was called.
    pub kind: HookKind,
    /// When.
    pub stage: HookStage,
    /// How it ended.
    pub outcome: HookOutcome,
    /// How long it ran, milliseconds.
    pub duration_ms: u64,
    /// What there is to say about its end, for people.
    pub detail: String,
}

/// What the detail of a `post` says whose failure makes its `pre`'s "quiesced" worth nothing.
const NOT_QUIESCED: &str = "the freeze may have ended before the disks were cloned, so it does not count as quiesced";

impl HookRun {
    /// Notes on a `post` that failed that what its `pre` said is not believed.
    pub fn deny_quiesced(&mut self) {
        let separator = if self.detail.is_empty() { "" } else { "; " };
        self.detail = format!("{}{separator}{NOT_QUIESCED}", self.detail);
    }

    /// Whether [`HookRun::deny_quiesced`] was called on it.
    pub fn denies_quiesced(&self) -> bool {
        self.detail.ends_with(NOT_QUIESCED)
    }

    /// Whether it was called and did not do what it should.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, HookOutcome::Failed | HookOutcome::Timeout)
    }
}
