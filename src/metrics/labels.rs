//! Values of labels.

/// Why a log-in was not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttled {
    /// Too many failures of its address.
    Address,
    /// Too many failures of its account.
    Account,
    /// Too many log-ins at once.
    Queue,
}

impl Throttled {
    pub(super) const ALL: [Self; 3] = [Self::Address, Self::Account, Self::Queue];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Account => "account",
            Self::Queue => "queue",
        }
    }
}

/// How a comparison of two snapshots ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// All changes were listed.
    Incremental,
    /// The whole disk was listed instead of its changes.
    Full,
    /// The client read a part: a page, or it disconnected.
    Partial,
    /// It cannot be made, and the client can do something about it: the base is lost.
    Refused,
    Failed,
}

impl Compared {
    pub(super) const ALL: [Self; 5] = [Self::Incremental, Self::Full, Self::Partial, Self::Refused, Self::Failed];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Incremental => "incremental",
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The length of an admission queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueLength {
    /// Its name in the status.
    pub name: &'static str,
    pub running: usize,
    pub waiting: usize,
    /// The number of concurrency slots.
    pub limit: usize,
}
