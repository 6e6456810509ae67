//! The documents of one snapshot, or of all of a VM, optionally compared to a base.

use std::sync::Arc;

use crate::api;
use crate::app::Error;
use crate::app::cancellation::Cancellation;
use crate::app::common::Common;
use crate::app::compare::{self, Comparisons, DiskMap, MapOptions, check_bases};
use crate::app::inventory::{Inventory, View};
use crate::app::retention::{InUse, Retention};
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::model::{LabelSelector, Permission, Snapshot, SnapshotDisk, SnapshotId, SnapshotPair, VmId, retention};
use crate::store::Store;

/// Creates the documents of snapshots.
pub struct Documents {
    inventory: Arc<Inventory>,
    retention: Arc<Retention>,
    comparisons: Arc<Comparisons>,
    store: Store,
    tasks: Tasks,
}

/// How the document of a snapshot is made.
#[derive(Clone, Copy, Debug)]
pub struct DocumentOptions {
    pub map: MapOptions,
    /// Whether it has the VM's definition.
    pub definition: bool,
}

/// A snapshot's document. Its maps are found while it is written.
pub struct SnapshotDocument {
    /// The document without its disks.
    pub snapshot: api::Snapshot,
    pub disks: Vec<DiskDocument>,
    /// Keeps the snapshots from being swept.
    pub in_use: Vec<InUse>,
}

/// A disk of a snapshot's document.
pub struct DiskDocument {
    /// The document without its map and status.
    pub disk: api::SnapshotDisk,
    pub map: MapDocument,
}

/// The part of a disk's map that is written.
pub enum MapDocument {
    /// The chunks, found lazily, then the totals.
    Chunks(DiskMap),
    /// Only the totals. All chunks have been found.
    Totals(DiskMap),
    /// No map, because the request asks for none. Holds the error if the disk's file cannot be used.
    Nothing(Option<Error>),
}

impl Service for Documents {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Documents {
    pub(crate) fn new(common: &Common, comparisons: Arc<Comparisons>) -> Self {
        let Common { inventory, retention, store, tasks, .. } = common.clone();
        Self { inventory, retention, comparisons, store, tasks }
    }

    /// The document of the snapshot `id` of the VM `vm_ref`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::NotOlder`], [`Error::BaseLost`], [`Error::SnapshotLost`].
    pub async fn one(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
        options: DocumentOptions,
        cancellation: Cancellation,
    ) -> Result<SnapshotDocument, Error> {
        let session = session.needing(options.map.permission());
        self.blocking(move |documents| {
            let in_use = documents.comparisons.hold(&session, (&vm_ref, id), options.map)?;
            let snapshot = documents.inventory.snapshot_of(&session, &vm_ref, id)?;
            let base = documents.comparisons.base_of(&session, options.map)?;
            let pair = compare::pair(base.as_ref(), &snapshot, options.map)?;
            if let Some(pair) = &pair {
                check_bases(pair, options.map)?;
            }
            // The way back leads to the disks of the base.
            let listed = pair.as_ref().map_or(&snapshot, SnapshotPair::target);
            let disks = listed.disks.iter().map(|disk| {
                let map = documents.comparisons.map(listed, pair.as_ref(), disk, options.map, &cancellation)?;
                Ok(DiskDocument { disk: documents.describe_disk(listed, disk), map: MapDocument::of(map, options.map) })
            });
            let disks = disks.collect::<Result<_, Error>>()?;
            let view = documents.inventory.recent_view(&session).ok();
            let mut document = documents.describe(&snapshot, options, view.as_ref());
            document.compare_to = base.as_ref().map(|base| base.id.to_string());
            document.reverse = options.map.reverse;
            Ok(SnapshotDocument { snapshot: document, disks, in_use })
        })
        .await
    }

    /// The documents of snapshots that were just created. Since the snapshots exist, errors of their maps do not fail
    /// the response.
    ///
    /// # Errors
    /// [`Error::SnapshotGone`] if one was deleted at once.
    pub async fn new_ones(
        self: &Arc<Self>,
        session: &Session,
        snapshots: Vec<Snapshot>,
        options: DocumentOptions,
        cancellation: Cancellation,
    ) -> Result<Vec<SnapshotDocument>, Error> {
        let session = session.clone();
        self.blocking(move |documents| {
            let view = documents.inventory.recent_view(&session).ok();
            let describe = |snapshot: Snapshot| {
                let in_use = documents.retention.hold_existing(snapshot.id).into_iter().collect();
                documents
                    .describe_whole(&snapshot, options, view.as_ref(), in_use, &cancellation)
                    .ok_or(Error::SnapshotGone)
            };
            snapshots.into_iter().map(describe).collect()
        })
        .await
    }

    /// The documents of the snapshots of the VM `vm_ref` that all `labels` select and the user may see, oldest first. A
    /// lost snapshot has the reason in its document, and does not fail the list.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Rebuilding`], [`Error::Store`].
    pub async fn all(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        labels: Vec<LabelSelector>,
        options: DocumentOptions,
        cancellation: Cancellation,
    ) -> Result<impl Iterator<Item = SnapshotDocument> + Send + use<>, Error> {
        let session = session.needing(options.map.permission());
        let snapshots = self.blocking(move |documents| {
            let vm = documents.inventory.resolve_vm(&session, &vm_ref)?;
            documents.inventory.check_all_known(&vm)?;
            let visible = documents.inventory.view(&session.needing(Permission::View))?;
            // A list does not count as use: a client that lists often must not keep all snapshots forever.
            let hold = |snapshot: Snapshot| {
                let in_use = if options.map.maps() { documents.retention.hold_briefly(snapshot.id) } else { None };
                (snapshot, in_use.into_iter().collect::<Vec<_>>())
            };
            let mut snapshots = documents.store.snapshots_of(&vm)?;
            snapshots.retain(|snapshot| visible.includes(snapshot));
            snapshots.retain(|snapshot| labels.iter().all(|label| label.selects(&snapshot.annotations)));
            // A snapshot that is visible is never left out of the list, so a list that needs more is refused.
            snapshots.iter().try_for_each(|snapshot| documents.inventory.check_snapshot(&session, snapshot))?;
            Ok((snapshots.into_iter().map(hold).collect::<Vec<_>>(), visible))
        });
        // The documents are created lazily, so that few files are open at a time.
        let (documents, (snapshots, view)) = (Arc::clone(self), snapshots.await?);
        let describe =
            move |(snapshot, in_use)| documents.describe_whole(&snapshot, options, Some(&view), in_use, &cancellation);
        Ok(snapshots.into_iter().filter_map(describe))
    }

    /// A document without a comparison. The rest of a disk that cannot be read is listed as data. Returns nothing if
    /// another exporter has deleted the snapshot.
    fn describe_whole(
        &self,
        snapshot: &Snapshot,
        options: DocumentOptions,
        view: Option<&View>,
        in_use: Vec<InUse>,
        cancellation: &Cancellation,
    ) -> Option<SnapshotDocument> {
        let disks = snapshot.disks.iter().map(|disk| {
            let map = self.comparisons.infallible_map(snapshot, disk, options.map, cancellation)?;
            Some(DiskDocument { disk: self.describe_disk(snapshot, disk), map: MapDocument::of(map, options.map) })
        });
        let disks = disks.collect::<Option<_>>()?;
        Some(SnapshotDocument { snapshot: self.describe(snapshot, options, view), disks, in_use })
    }

    /// A snapshot without its disks.
    fn describe(&self, snapshot: &Snapshot, options: DocumentOptions, view: Option<&View>) -> api::Snapshot {
        let retention = self.store.retentions().of(snapshot.id).unwrap_or_else(|error| {
            tracing::error!(snapshot = %snapshot.id, %error, "cannot read the snapshot's expiry and leases");
            retention::Retention::default()
        });
        let definition = if options.definition { self.store.definition(snapshot.id) } else { Ok(None) };
        let definition = definition.unwrap_or_else(|error| {
            tracing::error!(snapshot = %snapshot.id, %error, "cannot read the definition of the snapshot's VM");
            None
        });
        let leased_until = retention.leased_until.filter(|until| *until > jiff::Timestamp::now());
        let vm = snapshot.vm.to_string();
        api::Snapshot {
            id: snapshot.id.to_string(),
            vm_id: vm.clone(),
            vm_id_legacy: vm,
            created_at: api::time(snapshot.created_at),
            created_by: snapshot.created_by.clone(),
            consistency: snapshot.provenance.consistency.as_str().to_owned(),
            consistency_reason: snapshot.provenance.consistency_reason(),
            freeze_ms: snapshot.provenance.freeze_ms,
            hooks: snapshot.provenance.hooks.iter().map(api::HookRun::from).collect(),
            compare_to: None,
            reverse: false,
            retention: api::Retention {
                expires_at: retention.expires_at.map(api::time),
                leased_until: leased_until.map(api::time),
            },
            labels: snapshot.annotations.labels().clone(),
            description: snapshot.annotations.description().map(str::to_owned),
            permissions: view.map(|view| view.permissions(&snapshot.vm, Some(&snapshot.annotations))),
            definition,
            disks: Vec::new(),
        }
    }

    /// A disk without its map.
    fn describe_disk(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> api::SnapshotDisk {
        let id = snapshot.id.to_string();
        // The paths are empty if the repository is no longer listed.
        let repository = self.inventory.repository(&disk.source.repository);
        let mount_point =
            repository.as_ref().map(|repository| repository.mount_point().to_path_buf()).unwrap_or_default();
        let path =
            repository.as_ref().map(|repository| repository.snapshot_path(snapshot.id, &disk.name)).unwrap_or_default();
        api::SnapshotDisk {
            parent_path: mount_point.join(&disk.source.path).display().to_string(),
            path: path.display().to_string(),
            snapshot_id: id.clone(),
            snapshot_id_legacy: id,
            name: disk.name.to_string(),
            repo_mountpoint: mount_point.display().to_string(),
            size: disk.identity.size,
            map: None,
            status: api::Status::Ok,
            status_reason: None,
        }
    }
}

impl MapDocument {
    fn of(mut map: DiskMap, options: MapOptions) -> Self {
        if options.summary {
            Self::Totals(map)
        } else if options.chunks {
            Self::Chunks(map)
        } else {
            Self::Nothing(map.take_failure())
        }
    }
}
