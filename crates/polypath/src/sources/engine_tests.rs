//! The engine on a world of its own: devices that show what a test says, lists that say what a test says, and time in turns.

use super::shares::{MOST_PATHS, MOST_SERVICES_IN_ALL};
use super::*;
use polypath_block::{Access, CacheDomain, Identifier, IoQueue, Limits, OpenError, QueueConfig};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Disk {
    name: String,
    state: Mutex<DeviceState>,
    version: AtomicU64,
}

impl Disk {
    fn set(&self, state: DeviceState) {
        *self.state.lock().unwrap() = state;
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

impl Device for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        self.state.lock().unwrap().clone()
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        Err(OpenError::Unsupported { name: self.name.clone(), reason: "nobody reads or writes here".into() })
    }

    fn close(&self) {
        self.set(DeviceState::Gone { reason: "closed".into() });
    }
}

fn shows(identifiers: &[Identifier], blocks: u64) -> DeviceState {
    DeviceState::Live(Arc::new(DeviceInfo {
        geometry: Geometry { block_size: 512, blocks },
        limits: Limits::UNLIMITED,
        identity: Identity { identifiers: identifiers.to_vec(), cache_domain: CacheDomain("d".into()) },
        access: Access::Optimized,
        max_queues: 1,
        max_depth: 1,
    }))
}

fn down() -> DeviceState {
    DeviceState::Down { cause: Code::PathLost, reason: "the wire is cut".into() }
}

fn uuid(n: u8) -> Identifier {
    Identifier::Uuid([n; 16])
}

/// What is at one address: which units, and what each shows when it is opened.
#[derive(Default)]
struct Place {
    units: Mutex<Option<BTreeMap<u32, DeviceState>>>,
    gone: AtomicBool,
}

struct PlaceUnits(Arc<Place>);

impl Units for PlaceUnits {
    fn listed(&self) -> Option<Vec<u32>> {
        Some(self.0.units.lock().unwrap().as_ref()?.keys().copied().collect())
    }

    fn gone(&self) -> Option<String> {
        self.0.gone.load(Ordering::SeqCst).then(|| "given up".to_owned())
    }

    fn trouble(&self) -> Option<String> {
        Some("no answer".to_owned())
    }
}

#[derive(Default)]
struct Lab {
    places: Mutex<BTreeMap<String, Arc<Place>>>,
    open: Mutex<Vec<(String, Arc<Disk>)>>,
}

impl World for Lab {
    fn ask(&self, _: &SourceUri) -> Result<Vec<ServiceUri>, String> {
        Err("tests answer by themselves".into())
    }

    fn watch(&self, _: &SourceUri) -> Option<Box<dyn super::super::world::Watch>> {
        None
    }

    fn look(&self, service: &ServiceUri) -> Result<Arc<dyn Units>, String> {
        let place = self.places.lock().unwrap().get(&service.key).cloned();
        Ok(Arc::new(PlaceUnits(place.ok_or("nothing is there")?)))
    }

    fn open(&self, path: &polypath_block::DiskUri) -> Result<Arc<dyn Device>, String> {
        let key = ServiceUri::new(path, false).key;
        let place = self.places.lock().unwrap().get(&key).cloned().ok_or("nothing is there")?;
        let unit = path.option("ns").and_then(|ns| ns.parse().ok()).unwrap_or(0);
        let units = place.units.lock().unwrap();
        let state = units.as_ref().and_then(|units| units.get(&unit).cloned()).unwrap_or(DeviceState::Starting);
        let disk = Arc::new(Disk { name: path.to_string(), state: Mutex::new(state), version: AtomicU64::new(1) });
        self.open.lock().unwrap().push((ServiceUri::new(path, false).path_name(unit), disk.clone()));
        Ok(disk)
    }
}

/// Makes groups; those in use are said to be.
#[derive(Default)]
struct Shelf {
    used: Mutex<BTreeSet<String>>,
}

impl Keeper for Shelf {
    fn make(&self, new: &NewDevice) -> Result<(String, Arc<Group>), String> {
        Ok((new.name.clone(), Group::new(polypath_multipath::GroupConfig::new(&new.name))))
    }

    fn is_in_use(&self, name: &str, _: &Arc<Group>) -> bool {
        self.used.lock().unwrap().contains(name)
    }

    fn retire(&self, name: &str, group: &Arc<Group>) -> bool {
        let unused = !self.is_in_use(name, group);
        if unused {
            group.close();
        }
        unused
    }

    fn end(&self, _: &str, group: &Arc<Group>) {
        group.close();
    }
}

struct Rig {
    lab: Arc<Lab>,
    shelf: Arc<Shelf>,
    engine: Engine,
    now: Instant,
    source: SourceId,
}

const SECOND: Duration = Duration::from_secs(1);

fn rig() -> Rig {
    let (lab, shelf, now) = (Arc::<Lab>::default(), Arc::<Shelf>::default(), Instant::now());
    let config = SourcesConfig { refresh: SECOND, rounds: 3, ..SourcesConfig::default() };
    let mut engine = Engine::new(lab.clone(), shelf.clone(), config, now);
    let source = engine.add("nvme-tcp://10.0.0.1".parse().unwrap());
    Rig { lab, shelf, engine, now, source }
}

fn service(host: u32) -> ServiceUri {
    let [_, a, b, c] = host.to_be_bytes();
    ServiceUri::new(&format!("nvme-tcp://10.{a}.{b}.{c}/nqn.a").parse().unwrap(), false)
}

fn path(host: u32, unit: u32) -> String {
    service(host).path_name(unit)
}

impl Rig {
    /// What is at `host` from now on; what is open there follows.
    fn put(&self, host: u32, units: &[(u32, DeviceState)]) -> Arc<Place> {
        let place = self.lab.places.lock().unwrap().entry(service(host).key).or_default().clone();
        *place.units.lock().unwrap() = Some(units.iter().cloned().collect());
        place
    }

    /// The path shows this from now on.
    fn set(&self, name: &str, state: DeviceState) {
        let open = self.lab.open.lock().unwrap();
        open.iter().rev().find(|(path, _)| path == name).expect("it is open").1.set(state);
    }

    fn answer(&mut self, hosts: &[u32]) {
        let listed = hosts.iter().map(|&host| service(host)).collect();
        self.engine.answer(self.source, Ok(listed), self.now);
    }

    /// Time passes in which nothing is answered.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += Duration::from_millis(100);
            self.engine.turn(self.now);
        }
    }

    /// Rounds in which the source lists these.
    fn rounds(&mut self, n: u32, hosts: &[u32]) {
        for _ in 0..n {
            self.answer(hosts);
            self.pass(SECOND);
        }
    }

    /// Devices with their paths.
    fn devices(&self) -> Vec<(String, Vec<String>)> {
        self.engine
            .report()
            .devices
            .into_iter()
            .map(|device| (device.name, device.paths.into_iter().map(|path| path.name).collect()))
            .collect()
    }

    /// How much of what each source lists is left out.
    fn left_out(&self) -> Vec<usize> {
        self.engine.report().sources.iter().map(|source| source.left_out).collect()
    }

    fn why(&self, name: &str) -> String {
        let loose = self.engine.report().loose;
        loose.into_iter().find(|path| path.name == name).map_or("in a device".into(), |path| path.why)
    }
}

fn one(n: u8, paths: &[String]) -> (String, Vec<String>) {
    (uuid(n).to_string(), paths.to_vec())
}

#[test]
fn one_device_for_each_disk_and_a_stranger_is_his_own() {
    let mut rig = rig();
    let naa = Identifier::Naa(vec![0x61; 16]);
    rig.put(1, &[(1, shows(&[uuid(1), naa.clone()], 100)), (2, shows(&[uuid(2)], 100))]);
    rig.put(2, &[(1, shows(&[uuid(1)], 100)), (7, shows(&[], 5))]);
    rig.answer(&[1, 2]);
    rig.pass(SECOND);
    let nobody = (path(2, 7), vec![path(2, 7)]);
    let mut want = vec![one(1, &[path(1, 1), path(2, 1)]), one(2, &[path(1, 2)]), nobody.clone()];
    want.sort();
    assert_eq!(rig.devices(), want);
    let report = rig.engine.report();
    let found = report.device(&naa.to_string()).expect("it is found by all that it proves to be");
    assert_eq!(found.name, uuid(1).to_string());
    let group = found.group().expect("it is there");
    let usable = group.statistics().iter().filter(|p| p.state == polypath_multipath::PathState::Usable).count();
    assert_eq!(usable, 2, "{:?}", group.statistics());
    // One arrives, and joins; listing everything again opens nothing twice.
    rig.put(3, &[(1, shows(&[uuid(1)], 100))]);
    rig.rounds(3, &[1, 2, 3, 3, 1]);
    assert_eq!(rig.devices()[1], one(1, &[path(1, 1), path(2, 1), path(3, 1)]), "{:?}", rig.devices());
    assert_eq!(rig.lab.open.lock().unwrap().len(), 5);
}

#[test]
fn a_path_goes_when_it_is_down_and_not_listed_and_never_for_silence() {
    let mut rig = rig();
    for host in [1, 2] {
        rig.put(host, &[(1, shows(&[uuid(1)], 100))]);
    }
    rig.rounds(1, &[1, 2]);
    let both = vec![one(1, &[path(1, 1), path(2, 1)])];
    // Down, and the source is silent.
    rig.set(&path(2, 1), down());
    for _ in 0..20 {
        rig.engine.answer(rig.source, Err("no answer".into()), rig.now);
        rig.pass(SECOND);
    }
    assert_eq!(rig.devices(), both);
    assert_eq!(rig.engine.report().sources[0].problem.as_deref(), Some("no answer"));
    // Up, and not listed.
    rig.set(&path(2, 1), shows(&[uuid(1)], 100));
    rig.rounds(20, &[1]);
    assert_eq!(rig.devices(), both);
    // Both.
    rig.set(&path(2, 1), down());
    rig.pass(SECOND);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1)])]);
    // It was listed again in time, and then it was not.
    rig.rounds(1, &[1, 2]);
    rig.set(&path(2, 1), down());
    rig.rounds(2, &[1]);
    rig.rounds(1, &[1, 2]);
    rig.rounds(2, &[1]);
    assert_eq!(rig.devices(), both);
    rig.rounds(2, &[1]);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1)])]);
    // A unit that its service lists no more, likewise; and the last one takes the device with it.
    rig.set(&path(1, 1), down());
    rig.pass(SECOND * 10);
    assert_eq!(rig.devices().len(), 1, "listed");
    rig.put(1, &[]);
    rig.pass(SECOND * 5);
    assert_eq!(rig.devices(), vec![]);
}

#[test]
fn who_comes_back_as_another_disk_is_another_device() {
    let mut rig = rig();
    for host in [1, 2] {
        rig.put(host, &[(1, shows(&[uuid(1)], 100))]);
    }
    rig.rounds(1, &[1, 2]);
    rig.put(2, &[(1, shows(&[uuid(9)], 100))]);
    rig.set(&path(2, 1), down());
    rig.pass(SECOND);
    rig.set(&path(2, 1), shows(&[uuid(9)], 100));
    rig.rounds(5, &[1, 2]);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1)]), one(9, &[path(2, 1)])]);
    // As it is when requests pin it, so that it does not show who it is.
    rig.put(2, &[(1, shows(&[uuid(1)], 100))]);
    rig.set(&path(2, 1), DeviceState::Down { cause: Code::PathIdentity, reason: "another disk answers".into() });
    rig.rounds(5, &[1, 2]);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1), path(2, 1)])], "and the device that nobody used has gone");
}

#[test]
fn a_stranger_with_somebodys_identifiers_and_another_size_is_held_aside() {
    let mut rig = rig();
    rig.put(1, &[(1, shows(&[uuid(1)], 100))]);
    rig.put(2, &[(1, shows(&[uuid(1)], 50))]);
    rig.rounds(1, &[1]);
    rig.rounds(3, &[1, 2]);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1)])]);
    assert!(rig.why(&path(2, 1)).contains("fewer than the 100 promised"), "{}", rig.why(&path(2, 1)));
    // It was only behind in growing.
    rig.set(&path(2, 1), shows(&[uuid(1)], 100));
    rig.pass(SECOND);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1), path(2, 1)])]);
}

#[test]
fn a_device_in_use_waits_for_its_paths_and_is_nobody_elses() {
    let mut rig = rig();
    let t10 = Identifier::T10Vendor(vec![1]);
    rig.put(1, &[(1, shows(&[uuid(1)], 100)), (2, shows(std::slice::from_ref(&t10), 100))]);
    rig.rounds(1, &[1]);
    let unproven = path(1, 2);
    rig.shelf.used.lock().unwrap().extend([uuid(1).to_string(), unproven.clone()]);
    let gone = [(1, down()), (2, down())];
    gone.iter().for_each(|(unit, state)| rig.set(&path(1, *unit), state.clone()));
    rig.put(1, &[]);
    rig.rounds(5, &[1]);
    assert_eq!(rig.devices(), vec![(unproven.clone(), vec![]), one(1, &[])]);
    rig.put(1, &[(1, shows(&[uuid(1)], 100)), (2, shows(&[t10], 100))]);
    rig.rounds(5, &[1]);
    assert_eq!(rig.devices(), vec![(unproven.clone(), vec![]), one(1, &[path(1, 1)])]);
    assert!(rig.why(&unproven).contains("nothing proves"), "{}", rig.why(&unproven));
    rig.shelf.used.lock().unwrap().clear();
    rig.rounds(2, &[1]);
    assert_eq!(rig.devices(), vec![(unproven.clone(), vec![unproven]), one(1, &[path(1, 1)])]);
}

#[test]
fn sources_leave_with_what_only_they_listed() {
    let mut rig = rig();
    for host in [1, 2] {
        rig.put(host, &[(1, shows(&[uuid(1)], 100)), (2, shows(&[uuid(2 + host as u8)], 100))]);
    }
    rig.rounds(1, &[1]);
    let other = rig.engine.add("nvme-tcp://10.0.0.2".parse().unwrap());
    rig.engine.answer(other, Ok(vec![service(1), service(2)]), rig.now);
    rig.pass(SECOND);
    rig.shelf.used.lock().unwrap().extend([uuid(1).to_string(), uuid(4).to_string()]);
    let refused = rig.engine.remove(other, false).unwrap_err();
    assert!(refused.contains(&uuid(4).to_string()) && refused.contains("force"), "{refused}");
    rig.shelf.used.lock().unwrap().remove(&uuid(4).to_string());
    assert_eq!(rig.engine.remove(other, false), Ok(()));
    assert!(rig.engine.remove(other, false).is_err());
    rig.rounds(1, &[1]);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1)]), one(3, &[path(1, 2)])]);
    // Whatever it answered late.
    rig.engine.answer(other, Ok(vec![service(2)]), rig.now);
    rig.rounds(1, &[1]);
    assert_eq!(rig.devices().len(), 2);
    rig.engine.end();
    assert!(rig.lab.open.lock().unwrap().iter().all(|(_, disk)| matches!(disk.state(), DeviceState::Gone { .. })));
}

#[test]
fn what_is_listed_without_end_has_one() {
    let mut rig = rig();
    let all: BTreeMap<u32, DeviceState> = (0..100_000).map(|n| (n, DeviceState::Starting)).collect();
    for host in 1..=8 {
        let place = rig.put(host, &[]);
        *place.units.lock().unwrap() = Some(all.clone());
    }
    rig.answer(&(1..=100_000).collect::<Vec<_>>());
    rig.pass(Duration::from_millis(300));
    assert_eq!(rig.engine.services.len(), MOST_SERVICES);
    assert_eq!(rig.lab.open.lock().unwrap().len(), MOST_PATHS);
    assert_eq!(rig.engine.services[&service(1).key].paths.len(), MOST_UNITS);
    assert_eq!(rig.left_out(), [100_000 - MOST_SERVICES + 8 * 100_000 - MOST_PATHS]);
}

/// Whatever a source lists, and however often it lists something else, the others have their shares.
#[test]
fn what_one_source_lists_leaves_out_nothing_of_another_one() {
    let mut rig = rig();
    let other = rig.engine.add("nvme-tcp://10.0.0.2".parse().unwrap());
    let many: BTreeMap<u32, DeviceState> = (0..5000).map(|n| (n, DeviceState::Starting)).collect();
    for host in 1..=5 {
        *rig.put(host, &[]).units.lock().unwrap() = Some(many.clone());
    }
    // A quarter of what there may be in all, five times, before any of it is let go of.
    rig.engine.config.rounds = 1000;
    for round in 0..5 {
        rig.answer(&(1..=256).map(|n| if n <= 5 { n } else { round * 1000 + n }).collect::<Vec<_>>());
        rig.engine.turn(rig.now);
    }
    assert_eq!(rig.engine.services.len(), MOST_SERVICES_IN_ALL);
    assert!(rig.left_out()[0] > 0);
    rig.pass(Duration::from_millis(300));
    assert_eq!(rig.lab.open.lock().unwrap().len(), MOST_PATHS);
    // The other one comes late, in the order of names as well.
    let half = MOST_PATHS / 2;
    for host in [60_001, 60_002, 60_003] {
        *rig.put(host, &[]).units.lock().unwrap() = Some((0..1000).map(|n| (n, DeviceState::Starting)).collect());
    }
    rig.engine.answer(other, Ok((60_001..60_101).map(service).collect()), rig.now);
    rig.pass(Duration::from_millis(300));
    let of_other = |rig: &Rig| rig.engine.report().sources[1].clone();
    let now = of_other(&rig);
    assert_eq!((now.services, now.paths, now.left_out), (100, half, 3000 - half));
    assert_eq!(rig.engine.services.values().filter(|s| s.sources.contains_key(&other)).count(), 100);
    assert_eq!(rig.engine.report().sources[0].paths, MOST_PATHS, "what is there stays");
    // Less of the one makes room for more of the other.
    rig.engine.config.rounds = 1;
    rig.put(60_001, &[]);
    rig.pass(3 * SECOND);
    assert_eq!((of_other(&rig).paths, of_other(&rig).left_out), (2000, 0));
}

#[test]
fn devices_of_one_source_leave_out_none_of_another_one() {
    let mut rig = rig();
    let other = rig.engine.add("nvme-tcp://10.0.0.2".parse().unwrap());
    for host in 1..=3 {
        // Nothing proves who they are: each is a device of its own.
        let all: Vec<(u32, DeviceState)> = (0..30).map(|n| (n, shows(&[], 100))).collect();
        rig.put(host, &all);
    }
    rig.put(9, &[(1, shows(&[uuid(9)], 100))]);
    rig.rounds(1, &[1, 2, 3]);
    assert_eq!(rig.engine.homes.len(), MOST_DEVICES);
    rig.engine.answer(other, Ok(vec![service(9)]), rig.now);
    rig.pass(SECOND);
    assert_eq!(rig.devices().iter().filter(|device| **device == one(9, &[path(9, 1)])).count(), 1);
    assert_eq!(rig.engine.homes.len(), MOST_DEVICES + 1);
    assert!(rig.why(&path(3, 29)).contains("its share"), "{}", rig.why(&path(3, 29)));
}

#[test]
fn a_service_that_is_given_up_is_begun_anew() {
    let mut rig = rig();
    let place = rig.put(1, &[(1, shows(&[uuid(1)], 100))]);
    rig.rounds(1, &[1]);
    place.gone.store(true, Ordering::SeqCst);
    rig.set(&path(1, 1), DeviceState::Gone { reason: "given up".into() });
    rig.rounds(2, &[1]);
    assert_eq!(rig.devices(), vec![]);
    assert_eq!(rig.why(&service(1).key), "given up");
    place.gone.store(false, Ordering::SeqCst);
    rig.rounds(4, &[1]);
    assert_eq!(rig.devices(), vec![one(1, &[path(1, 1)])]);
}
