//! Where a session may connect: its portal first, others of the same portal group when that is not to be had, and wherever the target has
//! sent us for now (RFC 7143 section 13.8, TargetAddress). A name that is being resolved holds up none of the others.

use crate::config::{Portal, TargetConfig};
use polypath_block::Time;
use polypath_net::{Bell, Question};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a name is waited for before the next portal is tried while it is being resolved.
const HEAD_START: Duration = Duration::from_millis(250);
/// Most addresses that are remembered of those that have sent us on, one to the next.
const MOST_HOPS: usize = 8;

/// A name that is being resolved.
struct Asked {
    portal: Portal,
    sent_by: Vec<SocketAddr>,
    question: Question,
    since: Time,
}

/// See the module.
pub(super) struct Portals {
    all: Vec<Portal>,
    /// Which is tried next.
    at: usize,
    /// Where the target has sent us, and by which way we had come to where it did.
    moved: Option<(Portal, Vec<SocketAddr>)>,
    /// Addresses of the name that was resolved last which were not tried yet, and who had sent us to that.
    addresses: Vec<SocketAddr>,
    sent_by: Vec<SocketAddr>,
    asked: Vec<Asked>,
    way: Vec<SocketAddr>,
}

impl Portals {
    pub(super) fn new(config: &TargetConfig) -> Self {
        let mut all = vec![config.portal.clone()];
        all.extend(config.alternates.iter().filter(|p| **p != config.portal).cloned());
        let (addresses, sent_by, asked, way) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Portals { all, at: 0, moved: None, addresses, sent_by, asked, way }
    }

    /// The first is tried first again.
    pub(super) fn again(&mut self) {
        (self.at, self.moved) = (0, None);
        self.addresses.clear();
        self.asked.clear();
    }

    /// The target at the address that was given last is to be found there for now.
    pub(super) fn moved_to(&mut self, portal: Portal) {
        self.moved = Some((portal, self.way.clone()));
        self.addresses.clear();
        // One of them at a time, however many names it has.
        self.asked.retain(|asked| asked.sent_by.is_empty());
    }

    /// The address that was given last, behind those whose targets have sent us there, each to the next. One alone is of the configuration.
    pub(super) fn way(&self) -> &[SocketAddr] {
        &self.way
    }

    /// When it is to be asked again for the next address if no name is resolved before; `None`: there is one at once.
    pub(super) fn due(&self, config: &TargetConfig, now: Time) -> Option<Time> {
        let head_start = self.head_start().filter(|at| *at > now);
        let limits = self.asked.iter().map(|asked| asked.since.after(limit(config)));
        limits.chain(head_start).min()
    }

    /// The next address to be tried; `None` while there are only names that are being resolved, whose answers ring the bell.
    pub(super) fn next(
        &mut self,
        config: &TargetConfig,
        bell: &Arc<Bell>,
        now: Time,
    ) -> Option<Result<SocketAddr, String>> {
        if let Some(address) = self.addresses.pop() {
            return Some(Ok(self.go(address, self.sent_by.clone())));
        }
        if let Some(answer) = self.answered(config, now) {
            return Some(answer);
        }
        for _ in 0..=self.all.len() {
            if self.head_start().is_some_and(|at| now < at) {
                return None;
            }
            let (portal, sent_by) = self.moved.take().unwrap_or_else(|| {
                let portal = self.all[self.at % self.all.len()].clone();
                self.at += 1;
                (portal, Vec::new())
            });
            if let Ok(address) = portal.host.parse() {
                return Some(Ok(self.go(SocketAddr::new(address, portal.port), sent_by)));
            }
            if self.asked.iter().any(|asked| asked.portal == portal) {
                continue;
            }
            let bell = bell.clone();
            match config.resolver.ask(&portal.host, portal.port, move || bell.ring()) {
                Ok(question) => self.asked.push(Asked { portal, sent_by, question, since: now }),
                Err(error) => return Some(Err(format!("the name in {portal} cannot be asked for: {error}"))),
            }
        }
        None
    }

    /// What has become of the names that were asked for.
    fn answered(&mut self, config: &TargetConfig, now: Time) -> Option<Result<SocketAddr, String>> {
        let limit = limit(config);
        let mut end = None;
        for (at, asked) in self.asked.iter_mut().enumerate() {
            match asked.question.answer() {
                Some(answer) => end = Some((at, answer.map_err(|e| format!("cannot be resolved: {e}")))),
                None if now.since(asked.since) < limit => continue,
                None => end = Some((at, Err(format!("is not resolved within {} ms", limit.as_millis())))),
            }
            break;
        }
        let (at, answer) = end?;
        let Asked { portal, sent_by, .. } = self.asked.remove(at);
        Some(match answer {
            Ok(mut addresses) => {
                // Where we were last comes first: whoever answers there proves over what was sent to it, and some names are told in another
                // order each time.
                if let Some(at) = addresses.iter().position(|address| self.way.last() == Some(address)) {
                    addresses.swap(0, at);
                }
                addresses.reverse();
                let first = addresses.pop().ok_or_else(|| format!("the name in {portal} has no address"));
                (self.addresses, self.sent_by) = (addresses, sent_by.clone());
                first.map(|address| self.go(address, sent_by))
            }
            Err(why) => Err(format!("the name in {portal} {why}")),
        })
    }

    /// The newest of the names that are being resolved is waited for until then.
    fn head_start(&self) -> Option<Time> {
        self.asked.last().map(|asked| asked.since.after(HEAD_START))
    }

    fn go(&mut self, address: SocketAddr, mut way: Vec<SocketAddr>) -> SocketAddr {
        way.retain(|before| *before != address);
        way.push(address);
        way.drain(..way.len().saturating_sub(MOST_HOPS));
        self.way = way;
        address
    }
}

/// How long a name may take.
fn limit(config: &TargetConfig) -> Duration {
    config.connect_timeout * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::login::Name;
    use polypath_net::Resolver;
    use std::io;
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    /// Portals whose names are resolved when the test says so.
    struct Rig {
        config: TargetConfig,
        portals: Portals,
        bell: Arc<Bell>,
        /// Addresses for each name, in this order.
        answers: Vec<Sender<Vec<SocketAddr>>>,
    }

    impl Rig {
        /// The first is the portal, those after it are the alternates; what is no address is `n0.test`, `n1.test`...
        fn new(hosts: &[&str], names: usize) -> Rig {
            let (answers, gates): (Vec<_>, Vec<_>) = (0..names).map(|_| channel()).unzip();
            let gates: Vec<_> = gates.into_iter().map(Mutex::new).collect();
            let portal = |host: &&str| Portal { host: (*host).to_owned(), port: 3260 };
            let mut config = TargetConfig::new(hosts[0], 3260, Name::new("iqn.2026-01.org.example:portals").unwrap());
            config.alternates = hosts[1..].iter().map(portal).collect();
            config.connect_timeout = Duration::from_millis(1000);
            config.resolver = Resolver::new(move |host| {
                let at: usize = host[1..2].parse().unwrap();
                gates[at].lock().unwrap().recv().map_err(|_| io::ErrorKind::NotFound.into())
            });
            Rig { portals: Portals::new(&config), config, bell: Arc::new(Bell::new().unwrap()), answers }
        }

        fn next(&mut self, ms: u64) -> Option<String> {
            let next = self.portals.next(&self.config, &self.bell, Time::from_millis(ms))?;
            Some(next.map_or_else(|error| error, |address| address.to_string()))
        }

        /// The name with this number has these addresses. Returns once that was told.
        fn answer(&mut self, name: usize, addresses: &[&str]) {
            let addresses = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0));
            self.answers[name].send(addresses.collect()).unwrap();
            let asked = self.portals.asked.iter().position(|asked| asked.portal.host == format!("n{name}.test"));
            while !self.portals.asked[asked.unwrap()].question.is_answered() {
                std::thread::yield_now();
            }
        }
    }

    fn said(address: &str) -> Option<String> {
        Some(format!("{address}:3260"))
    }

    #[test]
    fn a_name_that_is_being_resolved_holds_up_no_other_portal() {
        let mut rig = Rig::new(&["n0.test", "192.0.2.2", "n1.test", "192.0.2.4"], 2);
        let at = Time::from_millis;
        assert_eq!((rig.next(1000), rig.next(1249)), (None, None), "it comes first");
        assert_eq!(rig.portals.due(&rig.config, at(1249)), Some(at(1250)));
        assert_eq!((rig.next(1250), rig.next(1300)), (said("192.0.2.2"), None), "the other name has its time, too");
        rig.answer(1, &["192.0.2.3"]);
        assert_eq!((rig.next(1301), rig.next(1302)), (said("192.0.2.3"), said("192.0.2.4")));
        assert_eq!(rig.next(1303), said("192.0.2.2"), "round again");
        rig.answer(0, &["192.0.2.1"]);
        assert_eq!(rig.next(1304), said("192.0.2.1"), "as soon as it is known");
        assert_eq!(rig.portals.way().len(), 1);
    }

    #[test]
    fn a_name_that_is_never_resolved_is_given_up_and_asked_for_again() {
        let mut rig = Rig::new(&["n0.test"], 1);
        let at = Time::from_millis;
        assert_eq!((rig.next(1000), rig.next(4999)), (None, None));
        assert_eq!(rig.portals.due(&rig.config, at(4999)), Some(at(5000)));
        assert!(rig.next(5000).unwrap().contains("not resolved within 4000 ms"));
        assert_eq!((rig.portals.due(&rig.config, at(5001)), rig.next(5001)), (None, None));
        rig.answer(0, &["192.0.2.1"]);
        assert_eq!(rig.next(5002), said("192.0.2.1"));
        let mut rig = Rig::new(&["n0.test"], 1);
        rig.next(1000);
        rig.answers.clear();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        let error = loop {
            match rig.next(1001) {
                Some(error) => break error,
                None => assert!(std::time::Instant::now() < until),
            }
        };
        assert!(error.contains("n0.test:3260 cannot be resolved"), "{error}");
    }

    #[test]
    fn the_address_of_a_name_at_which_we_were_last_comes_first() {
        let mut rig = Rig::new(&["n0.test"], 1);
        rig.next(1000);
        rig.answer(0, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!([rig.next(1001), rig.next(1002)], [said("192.0.2.1"), said("192.0.2.2")]);
        rig.portals.again();
        rig.next(1003);
        rig.answer(0, &["192.0.2.3", "192.0.2.1", "192.0.2.2"]);
        assert_eq!([(); 3].map(|()| rig.next(1004)), ["192.0.2.2", "192.0.2.1", "192.0.2.3"].map(said));
    }

    #[test]
    fn the_way_to_an_address_is_who_has_sent_us_there() {
        let mut rig = Rig::new(&["192.0.2.1", "192.0.2.2"], 1);
        let address = |n: usize| format!("192.0.2.{n}:3260").parse::<SocketAddr>().unwrap();
        let portal = |host: &str| Portal { host: host.into(), port: 3260 };
        rig.next(1000);
        assert_eq!(rig.portals.way(), [address(1)]);
        rig.portals.moved_to(portal("n0.test"));
        assert_eq!(rig.next(1001), None);
        rig.answer(0, &["192.0.2.3"]);
        rig.next(1002);
        assert_eq!(rig.portals.way(), [address(1), address(3)]);
        rig.portals.moved_to(portal("192.0.2.1"));
        rig.next(1003);
        assert_eq!(rig.portals.way(), [address(3), address(1)]);
        for n in 10..30 {
            rig.portals.moved_to(portal(&format!("192.0.2.{n}")));
            rig.next(1004);
        }
        assert_eq!(rig.portals.way(), (22..30).map(address).collect::<Vec<_>>());
        rig.next(1005);
        assert_eq!(rig.portals.way(), [address(2)], "nobody has sent us");
    }
}
