//! The engine: what is known of sources, services, paths and devices, and what follows from it. Turns are given by `threads.rs`; time is an
//! argument.

#[path = "shares.rs"]
mod shares;

use super::keeper::{Keeper, NewDevice};
use super::report::{DeviceReport, LooseReport, PathReport, Report, SourceReport};
use super::sort::{Known, Place, place};
use super::uri::{ServiceUri, SourceUri};
use super::world::{MOST_SERVICES, Units, World};
use super::{SourceId, SourcesConfig, name};
use polypath_block::{Code, Device, DeviceInfo, DeviceState, Geometry, Identity, Verdict};
use polypath_multipath::{Group, GroupError, PathConfig, PathId};
use shares::{MOST_DEVICES, MOST_UNITS};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Pause before a path that had to be closed, or could not be opened, is opened again.
const REOPEN: Duration = Duration::from_secs(1);

struct Source {
    uri: SourceUri,
    answered: Option<Instant>,
    problem: Option<String>,
    services: usize,
    /// Services that it lists and that there is no room for.
    left_out: usize,
    /// Was it said that something of it is left out?
    told: bool,
}

/// A controller or a target behind one address.
struct Service {
    uri: ServiceUri,
    /// Who lists it, and how many answers of each have left it out since.
    sources: BTreeMap<SourceId, u32>,
    units: Option<Arc<dyn Units>>,
    /// When it is looked at (again), if it is not.
    again: Instant,
    problem: Option<String>,
    paths: BTreeMap<u32, Path>,
    /// Paths that it lists and that there is no room for.
    left_out: usize,
}

impl Service {
    fn is_listed(&self, rounds: u32) -> bool {
        self.sources.values().any(|missed| *missed < rounds)
    }
}

struct Path {
    name: String,
    /// Rounds in which its service answered and did not list it.
    missed: u32,
    stage: Stage,
}

enum Stage {
    /// Not open; to be opened then.
    Closed { again: Instant, why: String },
    /// Open, and in no device: why, and whether that is for want of an answer. `seen`: of what moment that is (see [`Engine::seen`]).
    Loose { device: Arc<dyn Device>, why: String, pending: bool, seen: (u64, u64) },
    /// In a device, whose group owns it from then on.
    Placed { device: Arc<dyn Device>, home: String, id: PathId, shown: Identity },
    /// The group was told to let go of it, and closes it.
    Leaving { group: Weak<Group>, home: String, id: PathId },
}

struct Home {
    group: Arc<Group>,
    /// The sources of its first path.
    made_for: Vec<SourceId>,
    proven: Vec<String>,
    /// What each path shows, by its name; of the last one when there is none.
    members: BTreeMap<String, Identity>,
    geometry: Geometry,
    read_only: bool,
    conflict: Option<String>,
}

/// See the module.
pub(crate) struct Engine {
    world: Arc<dyn World>,
    keeper: Arc<dyn Keeper>,
    config: SourcesConfig,
    sources: BTreeMap<SourceId, Source>,
    services: BTreeMap<String, Service>,
    homes: BTreeMap<String, Home>,
    next_round: Instant,
    next_id: u64,
    /// Counts what may make a difference to paths that are held aside.
    changes: u64,
    full: bool,
}

impl Engine {
    pub(crate) fn new(world: Arc<dyn World>, keeper: Arc<dyn Keeper>, config: SourcesConfig, now: Instant) -> Engine {
        Engine {
            world,
            keeper,
            config,
            sources: BTreeMap::new(),
            services: BTreeMap::new(),
            homes: BTreeMap::new(),
            next_round: now + config.refresh,
            next_id: 1,
            changes: 0,
            full: false,
        }
    }

    /// A source from now on.
    pub(crate) fn add(&mut self, uri: SourceUri) -> SourceId {
        let id = SourceId(self.next_id);
        self.next_id += 1;
        tracing::info!(source = %id, %uri, kind = %uri.kind(), "source added");
        self.sources.insert(id, Source { uri, answered: None, problem: None, services: 0, left_out: 0, told: false });
        id
    }

    /// No source any more; what nobody else lists goes at once. Unless `force`, not while a device that is in use would be left without
    /// paths.
    pub(crate) fn remove(&mut self, id: SourceId, force: bool) -> Result<(), String> {
        if !self.sources.contains_key(&id) {
            return Err(format!("there is no source {id}"));
        }
        let only = |service: &Service| service.sources.keys().all(|source| *source == id);
        if !force {
            let going: BTreeSet<&str> =
                self.services.values().filter(|s| only(s)).flat_map(|s| s.paths.values()).map(|p| &*p.name).collect();
            let bereft = |home: &Home| home.members.keys().all(|name| going.contains(&**name));
            let mut used = self.homes.iter().filter(|(name, home)| {
                !home.group.paths().is_empty() && bereft(home) && self.keeper.is_in_use(name, &home.group)
            });
            if let Some((name, _)) = used.next() {
                return Err(format!(
                    "device {name} is in use and would be left without a path; end its use first, or say force=true"
                ));
            }
        }
        self.sources.remove(&id);
        let mut gone = Vec::new();
        for (key, service) in &mut self.services {
            service.sources.remove(&id);
            if service.sources.is_empty() {
                gone.push(key.clone());
            }
        }
        gone.iter().for_each(|key| self.drop_service(key));
        tracing::info!(source = %id, "source removed");
        Ok(())
    }

    /// A source has answered, or has not.
    pub(crate) fn answer(&mut self, id: SourceId, answer: Result<Vec<ServiceUri>, String>, now: Instant) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        let listed = match answer {
            Ok(listed) => listed,
            Err(problem) => {
                if source.problem.as_ref() != Some(&problem) {
                    tracing::warn!(source = %source.uri, problem, "a source does not answer; what it listed before stays");
                }
                source.problem = Some(problem);
                return;
            }
        };
        (source.answered, source.problem, source.services) = (Some(now), None, listed.len());
        let keys: BTreeSet<&str> = listed.iter().map(|service| &*service.key).collect();
        for (key, service) in &mut self.services {
            if let Some(missed) = service.sources.get_mut(&id) {
                *missed = if keys.contains(&**key) { 0 } else { missed.saturating_add(1) };
            }
        }
        let mut left_out = listed.len().saturating_sub(MOST_SERVICES);
        for uri in listed.into_iter().take(MOST_SERVICES) {
            left_out += usize::from(!self.list(id, uri, now));
        }
        if let Some(source) = self.sources.get_mut(&id) {
            source.left_out = left_out;
        }
    }

    /// A source lists that. Answers with whether there is room.
    fn list(&mut self, id: SourceId, uri: ServiceUri, now: Instant) -> bool {
        if let Some(service) = self.services.get_mut(&uri.key) {
            service.sources.insert(id, 0);
            return true;
        }
        if self.room_for_services(id) == 0 {
            return false;
        }
        tracing::info!(service = uri.key, source = %id, "found");
        let sources = BTreeMap::from([(id, 0)]);
        let (units, problem, paths) = (None, None, BTreeMap::new());
        let service = Service { uri, sources, units, again: now, problem, paths, left_out: 0 };
        self.services.insert(service.uri.key.clone(), service);
        true
    }

    /// One turn: whatever can be done now.
    pub(crate) fn turn(&mut self, now: Instant) {
        let round = now >= self.next_round;
        if round {
            self.next_round = now + self.config.refresh;
        }
        let keys: Vec<String> = self.services.keys().cloned().collect();
        for key in &keys {
            self.look(key, now);
            self.follow(key, round, now);
        }
        self.tidy();
        self.tell_left_out();
    }

    /// Begins to look at a service, or begins anew.
    fn look(&mut self, key: &str, now: Instant) {
        let rounds = self.config.rounds;
        let Some(service) = self.services.get_mut(key) else { return };
        if let Some(reason) = service.units.as_ref().and_then(|units| units.gone()) {
            if service.problem.as_ref() != Some(&reason) {
                tracing::warn!(service = key, reason, "given up by its driver; begun anew");
            }
            (service.units, service.problem, service.again) = (None, Some(reason), now + REOPEN);
        }
        if service.units.is_some() || now < service.again || !service.is_listed(rounds) {
            return;
        }
        match self.world.look(&service.uri) {
            Ok(units) => service.units = Some(units),
            Err(problem) => (service.problem, service.again) = (Some(problem), now + self.config.refresh),
        }
    }

    /// Which paths a service has, and how each does.
    fn follow(&mut self, key: &str, round: bool, now: Instant) {
        let rounds = self.config.rounds;
        let mut room = self.room_for_paths(key);
        let Some(service) = self.services.get_mut(key) else { return };
        let listed = service.units.as_ref().and_then(|units| units.listed());
        service.problem = match (&listed, &service.units) {
            (Some(_), _) => None,
            (None, Some(units)) => units.trouble().or(service.problem.take()),
            (None, None) => service.problem.take(),
        };
        if let Some(listed) = &listed {
            for &unit in listed.iter().take(MOST_UNITS) {
                if room > 0 && !service.paths.contains_key(&unit) {
                    room -= 1;
                    let path = Path {
                        name: service.uri.path_name(unit),
                        missed: 0,
                        stage: Stage::Closed { again: now, why: "not opened yet".into() },
                    };
                    service.paths.insert(unit, path);
                }
            }
            service.left_out = listed.iter().filter(|unit| !service.paths.contains_key(unit)).count();
            for (unit, path) in &mut service.paths {
                match listed.binary_search(unit) {
                    Ok(_) => path.missed = 0,
                    Err(_) if round => path.missed = path.missed.saturating_add(1),
                    Err(_) => {}
                }
            }
        }
        let unlisted = !service.is_listed(rounds);
        let units: Vec<u32> = service.paths.keys().copied().collect();
        for unit in units {
            self.step(key, unit, unlisted, round, now);
        }
        if let Some(service) = self.services.get(key)
            && unlisted
            && service.paths.is_empty()
        {
            tracing::info!(service = key, "listed no more, and let go of");
            self.services.remove(key);
        }
    }

    /// What is to be done about one path.
    fn step(&mut self, key: &str, unit: u32, unlisted: bool, round: bool, now: Instant) {
        let rounds = self.config.rounds;
        let Some(service) = self.services.get_mut(key) else { return };
        let Some(mut path) = service.paths.remove(&unit) else { return };
        let looked_at = service.units.is_some();
        let departed = unlisted || path.missed >= rounds;
        let uri = service.uri.for_driver(&service.uri.path(unit));
        let sources: Vec<SourceId> = service.sources.keys().copied().collect();
        path.stage = match path.stage {
            Stage::Closed { .. } if departed => return,
            Stage::Closed { again, why } if now < again || !looked_at => Stage::Closed { again, why },
            Stage::Closed { .. } => match self.world.open(&uri) {
                Ok(device) => connecting(device),
                Err(why) => Stage::Closed { again: now + self.config.refresh.max(REOPEN), why },
            },
            Stage::Loose { device, .. } if !looked_at => closed(&*device, now, "its service has to be begun anew"),
            // Nothing has happened to it, or to those that it could belong to.
            Stage::Loose { device, why, pending: false, seen } if !round && seen == self.seen(&*device) => {
                Stage::Loose { device, why, pending: false, seen }
            }
            Stage::Loose { device, .. } => match device.state() {
                DeviceState::Live(info) => self.settle(&path.name, &sources, device, &info),
                _ if departed => {
                    device.close();
                    tracing::info!(path = path.name, "listed no more, and down: removed");
                    return;
                }
                DeviceState::Gone { reason } => closed(&*device, now, &reason),
                DeviceState::Starting => connecting(device),
                DeviceState::Down { reason, .. } => self.aside(device, reason),
            },
            Stage::Placed { device, home, id, shown } => match stays(&device.state(), &shown, departed, looked_at) {
                Ok(now_shown) => {
                    if let Some(home) = self.homes.get_mut(&home) {
                        home.members.insert(path.name.clone(), now_shown.clone());
                    }
                    Stage::Placed { device, home, id, shown: now_shown }
                }
                Err(why) => {
                    tracing::warn!(path = path.name, device = home, "leaves its device: {why}");
                    let group = self.homes.get(&home).map(|home| Arc::downgrade(&home.group)).unwrap_or_default();
                    self.leave(&home, &path.name, id);
                    Stage::Leaving { group, home, id }
                }
            },
            Stage::Leaving { group, home, id } => {
                let there = group.upgrade().is_some_and(|group| group.paths().contains(&id));
                match there {
                    true => Stage::Leaving { group, home, id },
                    false if departed => return,
                    false => Stage::Closed { again: now + REOPEN, why: "it had to leave its device".into() },
                }
            }
        };
        if let Some(service) = self.services.get_mut(key) {
            service.paths.insert(unit, path);
        }
    }

    /// A path answers and is in no device: where does it belong?
    fn settle(&mut self, path: &str, sources: &[SourceId], device: Arc<dyn Device>, info: &Arc<DeviceInfo>) -> Stage {
        let members: Vec<Vec<Identity>> =
            self.homes.values().map(|home| home.members.values().cloned().collect()).collect();
        let known: Vec<Known<'_>> = self
            .homes
            .iter()
            .zip(&members)
            .map(|((name, home), members)| Known {
                name,
                members,
                geometry: home.promised(),
                read_only: home.read_only,
            })
            .collect();
        let home = match place(info, &known) {
            Place::Join(at) => known.get(at).map(|home| home.name.to_owned()).ok_or_else(String::new),
            Place::Aside(why) => Err(why),
            Place::New(conflict) => {
                drop(known);
                self.make(path, sources, info, conflict)
            }
        };
        let home = match home {
            Ok(home) => home,
            Err(why) => return self.aside(device, why),
        };
        let Some(record) = self.homes.get_mut(&home) else { return self.aside(device, "its device has gone".into()) };
        let config = PathConfig { name: path.to_owned(), ..PathConfig::new(device.clone()) };
        match record.group.add_path(config) {
            Ok(id) => {
                tracing::info!(device = home, path, "path joins");
                let shown = info.identity.clone();
                let paths: BTreeSet<String> = record.group.statistics().into_iter().map(|p| p.name).collect();
                // What was kept of a path that has gone has done its duty.
                record.members.retain(|name, _| paths.contains(name));
                record.members.insert(path.to_owned(), shown.clone());
                record.learn(&shown);
                self.changes += 1;
                Stage::Placed { device, home, id, shown }
            }
            // The same path is on its way out still.
            Err(error @ GroupError::NameTaken { .. }) => {
                Stage::Loose { device, why: error.to_string(), pending: true, seen: (0, 0) }
            }
            Err(error) => self.aside(device, error.to_string()),
        }
    }

    fn aside(&self, device: Arc<dyn Device>, why: String) -> Stage {
        let seen = self.seen(&*device);
        Stage::Loose { device, why, pending: false, seen }
    }

    /// A moment of `device` and of all devices: as long as it is the same, nothing has changed for a path that is held aside.
    fn seen(&self, device: &dyn Device) -> (u64, u64) {
        (self.changes, device.version())
    }

    /// A new device for what `path` leads to; its name.
    fn make(
        &mut self,
        path: &str,
        sources: &[SourceId],
        info: &Arc<DeviceInfo>,
        conflict: Option<String>,
    ) -> Result<String, String> {
        if self.room_for_devices(sources) == 0 {
            let why = format!("there are {MOST_DEVICES} devices or more, and its source has its share of them");
            if !std::mem::replace(&mut self.full, true) {
                tracing::error!(path, "left out, and what else comes: {why}");
            }
            return Err(why);
        }
        let taken =
            |name: &String| self.homes.contains_key(name) || self.homes.values().any(|home| home.proven.contains(name));
        let proven: Vec<String> = name::proven(&info.identity).into_iter().filter(|name| !taken(name)).collect();
        let name = proven.first().cloned().unwrap_or_else(|| name::of_place(path));
        if taken(&name) {
            return Err(format!("nothing proves that it is the disk that {name} was before"));
        }
        let (name, group) = self.keeper.make(&NewDevice { name, proven: proven.clone(), info: info.clone() })?;
        if self.homes.contains_key(&name) {
            return Err(format!("the name {name} is taken"));
        }
        match &conflict {
            Some(other) => {
                tracing::error!(device = name, path, other, identity = ?info.identity.identifiers, "a disk shows an identifier of another device and differs from it in others: it is kept apart");
            }
            None => {
                tracing::info!(device = name, path, bytes = info.geometry.bytes(), "new device");
            }
        }
        let home = Home {
            group,
            made_for: sources.to_vec(),
            proven,
            members: BTreeMap::new(),
            geometry: info.geometry,
            read_only: info.limits.read_only,
            conflict,
        };
        self.homes.insert(name.clone(), home);
        Ok(name)
    }

    fn leave(&mut self, home: &str, path: &str, id: PathId) {
        self.changes += 1;
        let Some(home) = self.homes.get_mut(home) else { return };
        if let Err(error) = home.group.remove_path(id) {
            tracing::debug!(path, %error, "a path that was to go");
        }
        // The last one is what the device is known by until another one comes.
        if home.members.len() > 1 {
            home.members.remove(path);
        }
    }

    fn drop_service(&mut self, key: &str) {
        let Some(service) = self.services.remove(key) else { return };
        for path in service.paths.into_values() {
            match path.stage {
                Stage::Loose { device, .. } => device.close(),
                Stage::Placed { home, id, .. } => self.leave(&home, &path.name, id),
                Stage::Closed { .. } | Stage::Leaving { .. } => {}
            }
        }
    }

    /// Devices without paths go, unless somebody uses them.
    fn tidy(&mut self) {
        let (keeper, before) = (&self.keeper, self.homes.len());
        self.homes.retain(|name, home| {
            home.group.refresh_at(polypath_reactor::now());
            if !home.group.paths().is_empty() {
                return true;
            }
            let retired = keeper.retire(name, &home.group);
            if retired {
                tracing::info!(device = name, "device without paths and users: removed");
            }
            !retired
        });
        self.changes += u64::from(self.homes.len() != before);
    }

    /// The sources end.
    pub(crate) fn end(&mut self) {
        let keys: Vec<String> = self.services.keys().cloned().collect();
        for key in keys {
            let Some(service) = self.services.remove(&key) else { continue };
            for path in service.paths.into_values() {
                // Those that are placed belong to their groups.
                if let Stage::Loose { device, .. } = path.stage {
                    device.close();
                }
            }
        }
        for (name, home) in std::mem::take(&mut self.homes) {
            self.keeper.end(&name, &home.group);
        }
    }

    pub(crate) fn report(&self) -> Report {
        let of =
            |id: &SourceId| self.services.values().filter(|s| s.sources.contains_key(id)).map(|s| s.paths.len()).sum();
        let left_out = self.left_out();
        let sources = self.sources.iter().map(|(id, source)| SourceReport {
            id: *id,
            uri: source.uri.to_string(),
            kind: source.uri.kind(),
            answered: source.answered,
            problem: source.problem.clone(),
            services: source.services,
            paths: of(id),
            left_out: left_out.get(id).map_or(0, |out| out.services + out.paths),
        });
        let placed = |home: &str| {
            let all = self.services.values().flat_map(|s| s.paths.iter().map(move |(unit, path)| (s, *unit, path)));
            let here = all.filter(|(_, _, p)| matches!(&p.stage, Stage::Placed { home: at, .. } if at == home));
            let mut paths: Vec<PathReport> =
                here.map(|(s, unit, path)| PathReport { name: path.name.clone(), uri: s.uri.path(unit) }).collect();
            paths.sort_by(|a, b| a.name.cmp(&b.name));
            paths
        };
        let devices = self.homes.iter().map(|(name, home)| DeviceReport {
            name: name.clone(),
            proven: home.proven.clone(),
            geometry: home.promised(),
            paths: placed(name),
            conflict: home.conflict.clone(),
            group: Arc::downgrade(&home.group),
        });
        Report { sources: sources.collect(), devices: devices.collect(), loose: self.loose(), version: 0 }
    }

    fn loose(&self) -> Vec<LooseReport> {
        let mut loose = Vec::new();
        for (key, service) in &self.services {
            let listed = service.units.as_ref().and_then(|units| units.listed());
            if listed.is_none() {
                let why = service.problem.clone();
                let pending = why.is_none();
                loose.push(LooseReport { name: key.clone(), pending, why: why.unwrap_or_else(|| "connecting".into()) });
            }
            for path in service.paths.values() {
                let (pending, why) = match &path.stage {
                    Stage::Closed { why, .. } => (why == "not opened yet", why.clone()),
                    Stage::Loose { pending, why, .. } => (*pending, why.clone()),
                    Stage::Leaving { home, .. } => (false, format!("leaving {home}")),
                    Stage::Placed { .. } => continue,
                };
                loose.push(LooseReport { name: path.name.clone(), pending, why });
            }
        }
        loose
    }
}

impl Home {
    /// The size that is promised to whoever uses it.
    fn promised(&self) -> Geometry {
        self.group.state().info().map_or(self.geometry, |info| info.geometry)
    }

    /// What else it proves to be.
    fn learn(&mut self, shown: &Identity) {
        for name in name::proven(shown) {
            if !self.proven.contains(&name) {
                self.proven.push(name);
            }
        }
    }
}

fn connecting(device: Arc<dyn Device>) -> Stage {
    Stage::Loose { device, why: "connecting".into(), pending: true, seen: (0, 0) }
}

fn closed(device: &dyn Device, now: Instant, why: &str) -> Stage {
    device.close();
    Stage::Closed { again: now + REOPEN, why: why.to_owned() }
}

/// Does a path of a device stay there? What it shows now, or why not.
fn stays(state: &DeviceState, shown: &Identity, departed: bool, looked_at: bool) -> Result<Identity, String> {
    match state {
        DeviceState::Live(info) => match shown.compare(&info.identity) {
            Verdict::Same => Ok(info.identity.clone()),
            Verdict::Unknown if shown.identifiers == info.identity.identifiers => Ok(info.identity.clone()),
            Verdict::Different | Verdict::Unknown => {
                let (now, before) = (&info.identity.identifiers, &shown.identifiers);
                Err(format!("another disk answers there: it shows {now:?}, before it was {before:?}"))
            }
        },
        DeviceState::Down { cause: Code::PathIdentity, reason } => Err(reason.clone()),
        DeviceState::Gone { reason } => Err(reason.clone()),
        _ if departed => Err("it is listed no more, and down".into()),
        _ if !looked_at => Err("its service has to be begun anew".into()),
        DeviceState::Starting | DeviceState::Down { .. } => Ok(shown.clone()),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
