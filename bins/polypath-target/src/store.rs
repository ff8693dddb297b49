//! Sets of disks as they are served: media with their names, sizes, access states and reservations, under every protocol's identifiers.

use crate::config::{Backing, ConfigError, DiskPlan};
use crate::media::beneath::{self, Identities, Source};
use crate::media::{Beneath, Keep, KeepFile, Medium, Picture, Reservations};
use crate::shared::lock;
use polypath::Stack;
use polypath_block::Identifier;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// One disk as it is now. A change of identity or size makes a new one over the same or another medium.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) nsid: u32,
    pub(crate) lun: u32,
    pub(crate) medium: Arc<Medium>,
    /// The medium before the last change: reads of it may still wait to be sent.
    #[allow(dead_code, reason = "held, not read")]
    pub(crate) previous: Option<Arc<Medium>>,
    pub(crate) shift: u32,
    pub(crate) blocks: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
    /// All that the disk beneath shows worldwide, where that is who it is.
    pub(crate) identifiers: Arc<[Identifier]>,
    pub(crate) group: u32,
    /// They stay with the disk whatever changes.
    pub(crate) reservations: Arc<Reservations>,
}

impl Disk {
    fn open(plan: &DiskPlan, threads: usize, media: &mut Media<'_>) -> Result<Disk, ConfigError> {
        if let Backing::Beneath(source) = &plan.backing {
            return Disk::over(plan, media.open(plan.nsid, source)?)?.keeping(plan);
        }
        let (medium, bytes) = Medium::open(&plan.backing, threads)?;
        let reservations = Arc::new(Reservations::new(Keep::WithData, Picture::default()));
        Ok(Disk { reservations, ..Disk::new(plan, medium, plan.bs.unwrap_or(512), bytes)? })
    }

    /// The same disk with its reservations in the file that is stated.
    fn keeping(self, plan: &DiskPlan) -> Result<Disk, ConfigError> {
        let Some(path) = &plan.reservations else { return Ok(self) };
        let digits = |id: &[u8]| id.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
        let name = format!("{}-{}-{}", digits(&self.uuid), digits(&self.nguid), digits(&self.eui64));
        let opened = KeepFile::open(path, name);
        let (file, picture) = opened.map_err(|e| ConfigError::new(format!("namespace {}", plan.nsid), e))?;
        Ok(Disk { reservations: Arc::new(Reservations::new(Keep::File(file), picture)), ..self })
    }

    fn new(plan: &DiskPlan, medium: Medium, block_size: u32, bytes: u64) -> Result<Disk, ConfigError> {
        let shift = block_size.trailing_zeros();
        if bytes >> shift == 0 {
            return Err(ConfigError::new(format!("namespace {}", plan.nsid), "smaller than one block"));
        }
        Ok(Disk {
            nsid: plan.nsid,
            lun: plan.lun,
            medium: Arc::new(medium),
            previous: None,
            shift,
            blocks: bytes >> shift,
            uuid: plan.uuid,
            nguid: plan.nguid,
            eui64: plan.eui64,
            identifiers: Arc::default(),
            group: plan.group,
            reservations: Arc::default(),
        })
    }

    /// A disk beneath, which is who it says it is unless somebody has stated otherwise.
    fn over(plan: &DiskPlan, beneath: Arc<Beneath>) -> Result<Disk, ConfigError> {
        let info = beneath.info();
        let block_size = info.geometry.block_size;
        if plan.bs.is_some_and(|bs| bs != block_size) {
            let problem = format!("{} has blocks of {block_size} bytes, and not of {:?}", beneath.name(), plan.bs);
            return Err(ConfigError::new(format!("namespace {}", plan.nsid), problem));
        }
        let disk = Disk::new(plan, Medium::Beneath(beneath), block_size, info.geometry.bytes())?;
        let list = &info.identity.identifiers;
        let ids = Identities::of(list, |text| crate::config::derived_uuid(text, 0)).filter(|_| !plan.stated);
        Ok(match ids {
            Some(Identities { uuid, nguid, eui64 }) => {
                let worldwide = list.iter().filter(|i| i.is_worldwide()).cloned().collect();
                Disk { uuid, nguid, eui64, identifiers: worldwide, ..disk }
            }
            None => disk,
        })
    }

    /// The same disk, to be changed.
    pub(crate) fn copy(&self) -> Disk {
        Disk {
            medium: self.medium.clone(),
            previous: Some(self.medium.clone()),
            identifiers: self.identifiers.clone(),
            reservations: self.reservations.clone(),
            ..*self
        }
    }
}

/// Where the disks beneath come from.
pub(crate) struct Media<'a> {
    /// None where there are no reactors for them, as in a simulated world.
    pub(crate) stack: Option<&'a Stack>,
    /// Those that are open.
    pub(crate) opened: Vec<Arc<Beneath>>,
}

impl Media<'_> {
    fn open(&mut self, nsid: u32, source: &Source) -> Result<Arc<Beneath>, ConfigError> {
        let fail = |problem: String| ConfigError::new(format!("namespace {nsid}"), problem);
        let stack = self.stack.ok_or_else(|| fail("there are no reactors for a disk beneath".into()))?;
        let beneath = beneath::open(stack, self.opened.len(), source).map_err(fail)?;
        self.opened.push(beneath.clone());
        Ok(beneath)
    }
}

/// What has changed about a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Size of a disk.
    Size(u32),
    /// Another disk has taken the place of this one.
    Identity(u32),
    /// A disk has come or gone.
    List(u32),
    /// Access states, on one listener or on all.
    Access(Option<usize>),
}

/// Disks that are served together: an NVM subsystem and a SCSI target device at once.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) nqn: String,
    /// Its name over iSCSI; without one it is not served there.
    pub(crate) iqn: Option<String>,
    pub(crate) serial: String,
    disks: Mutex<Arc<Vec<Arc<Disk>>>>,
    /// Disks that nobody sees for now.
    detached: Mutex<Vec<Arc<Disk>>>,
    version: AtomicU64,
    /// `access[listener][group - 1]`, codes of [`crate::AnaState`].
    access: Vec<Vec<AtomicU8>>,
    pub(crate) access_changes: AtomicU64,
}

impl Store {
    /// One without disks.
    pub(crate) fn empty(nqn: &str, serial: &str) -> Store {
        Store {
            nqn: nqn.into(),
            iqn: None,
            serial: serial.into(),
            disks: Mutex::default(),
            detached: Mutex::default(),
            version: AtomicU64::new(1),
            access: Vec::new(),
            access_changes: AtomicU64::new(0),
        }
    }

    /// Opens the media of `config`'s subsystem.
    pub(crate) fn open(
        sub: &crate::config::SubsystemConfig,
        listeners: &[crate::config::ListenerConfig],
        threads: usize,
        media: &mut Media<'_>,
    ) -> Result<Store, ConfigError> {
        let plans = sub.plan()?;
        let groups = plans.iter().map(|p| p.group).max().unwrap_or(1) as usize;
        let disks: Result<Vec<_>, _> = plans.iter().map(|p| Disk::open(p, threads, media).map(Arc::new)).collect();
        let id = crate::config::derived(&sub.nqn, 0, b"serial");
        let derived: String = id[..10].iter().map(|b| format!("{b:02x}")).collect();
        let state = |l: &crate::config::ListenerConfig| (0..groups).map(|_| AtomicU8::new(l.ana.code())).collect();
        Ok(Store {
            nqn: sub.nqn.clone(),
            iqn: sub.iqn.clone(),
            serial: sub.serial.clone().unwrap_or(derived),
            disks: Mutex::new(Arc::new(disks?)),
            detached: Mutex::default(),
            version: AtomicU64::new(1),
            access: listeners.iter().map(state).collect(),
            access_changes: AtomicU64::new(1),
        })
    }

    /// Are there disks beneath among its disks, or is that of this unit one?
    pub(crate) fn has_beneath(&self, unit: Option<u32>) -> bool {
        let beneath = |disk: &Arc<Disk>| matches!(*disk.medium, Medium::Beneath(_));
        self.all_disks().iter().any(|disk| unit.is_none_or(|unit| unit == disk.lun) && beneath(disk))
    }

    /// Is number `index` of the disks beneath that of this unit, or of any?
    pub(crate) fn is_on(&self, index: usize, unit: Option<u32>) -> bool {
        let there = |disk: &Arc<Disk>| matches!(&*disk.medium, Medium::Beneath(b) if b.index == index);
        self.all_disks().iter().any(|disk| unit.is_none_or(|unit| unit == disk.lun) && there(disk))
    }

    /// Is this its name, as a subsystem or as a target?
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.nqn == name || self.iqn.as_deref() == Some(name)
    }

    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn disks(&self) -> Arc<Vec<Arc<Disk>>> {
        lock(&self.disks).clone()
    }

    /// Number of groups of disks that change their access states together (identifiers are 1 to this).
    pub(crate) fn groups(&self) -> u32 {
        self.access.first().map_or(0, |g| g.len() as u32)
    }

    /// Access state of a group on a listener, a code of [`crate::AnaState`].
    #[inline]
    pub(crate) fn access(&self, listener: usize, group: u32) -> u8 {
        match self.access.get(listener).and_then(|l| l.get(group as usize - 1)) {
            Some(state) => state.load(Ordering::Relaxed),
            None => 1,
        }
    }

    /// Sets the state of one group (or all) on one listener (or all). `false` when nothing is named so.
    pub(crate) fn set_access(&self, listener: Option<usize>, group: Option<u32>, code: u8) -> bool {
        let mut any = false;
        for (l, groups) in self.access.iter().enumerate() {
            for (g, state) in groups.iter().enumerate() {
                if listener.is_none_or(|x| x == l) && group.is_none_or(|x| x as usize == g + 1) {
                    state.store(code, Ordering::Relaxed);
                    any = true;
                }
            }
        }
        if any {
            self.access_changes.fetch_add(1, Ordering::AcqRel);
        }
        any
    }

    /// Replaces disk `nsid` by what `make` makes of it.
    pub(crate) fn replace(
        &self,
        nsid: u32,
        make: impl FnOnce(&Disk) -> Result<Disk, String>,
    ) -> Result<Arc<Disk>, String> {
        let mut list = lock(&self.disks);
        let at = list
            .iter()
            .position(|n| n.nsid == nsid)
            .ok_or_else(|| format!("subsystem {} has no namespace {nsid}", self.nqn))?;
        let new = Arc::new(make(&list[at])?);
        let mut next = list.to_vec();
        next[at] = new.clone();
        *list = Arc::new(next);
        self.version.fetch_add(1, Ordering::Release);
        Ok(new)
    }

    /// Hides disk `nsid` from everybody, or shows it again.
    pub(crate) fn attach(&self, nsid: u32, attached: bool) -> Result<(), String> {
        let (mut list, mut detached) = (lock(&self.disks), lock(&self.detached));
        let mut shown = list.to_vec();
        let (from, to) = if attached { (&mut *detached, &mut shown) } else { (&mut shown, &mut *detached) };
        let problem = if attached { "is not detached" } else { "is not there" };
        let at = from.iter().position(|n| n.nsid == nsid);
        let at = at.ok_or_else(|| format!("namespace {nsid} of subsystem {} {problem}", self.nqn))?;
        to.push(from.remove(at));
        shown.sort_by_key(|n| n.nsid);
        *list = Arc::new(shown);
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Those that are seen and those that are not.
    pub(crate) fn all_disks(&self) -> Vec<Arc<Disk>> {
        self.disks().iter().chain(lock(&self.detached).iter()).cloned().collect()
    }
}
