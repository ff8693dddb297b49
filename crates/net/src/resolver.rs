//! Names to addresses for those who may not wait: a few threads ask the system's resolver, which nothing can interrupt.
//!
//! A name is asked for once, however many want to know it meanwhile. One that is not answered costs one of the threads until the system has
//! given up; whoever asks has his own limit, and drops his question then.

use crate::thread::spawn_apart_with;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Names that are asked for at a time.
const THREADS: usize = 8;
/// Questions that wait or are asked at a time.
const MOST_QUESTIONS: usize = 4096;
/// Bytes of stack of each thread. The system's resolver loads what the host is configured to ask by, and keeps answers on the stack.
const STACK: usize = 2 << 20;

type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;
/// Ports are not set. An error in parts that can be told to several.
type Answer = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// See the module. Clones are one.
#[derive(Clone)]
pub struct Resolver(Arc<Desk>);

/// A name that was asked for. Dropping it takes the question back.
pub struct Question {
    desk: Arc<Desk>,
    host: String,
    port: u16,
    answer: Arc<Mutex<Option<Answer>>>,
}

struct Desk {
    look_up: Box<LookUp>,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// The oldest first.
    names: VecDeque<Name>,
    threads: usize,
}

struct Name {
    host: String,
    /// A thread is at it.
    begun: bool,
    askers: Vec<Asker>,
}

struct Asker {
    answer: Arc<Mutex<Option<Answer>>>,
    tell: Box<dyn FnOnce() + Send>,
}

impl Resolver {
    /// That of the system, shared by the whole process.
    pub fn system() -> Resolver {
        static SYSTEM: OnceLock<Resolver> = OnceLock::new();
        SYSTEM.get_or_init(|| Resolver::new(|host| crate::resolve(host, 0))).clone()
    }

    /// One that asks `look_up`, which may block, on threads of its own. Ports in what it says do not matter.
    pub fn new(look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Resolver {
        Resolver(Arc::new(Desk { look_up: Box::new(look_up), line: Mutex::default() }))
    }

    /// Asks for the addresses of `host`, in the order the system prefers them, with `port`. `tell` is called once when there is an answer, on
    /// another thread, unless the question is dropped before. Does not block.
    ///
    /// # Errors
    /// Too many questions wait, or there is no thread to ask.
    pub fn ask(&self, host: &str, port: u16, tell: impl FnOnce() + Send + 'static) -> io::Result<Question> {
        let answer = Arc::default();
        let asker = Asker { answer: Arc::clone(&answer), tell: Box::new(tell) };
        let mut line = self.0.lock();
        if line.names.iter().map(|name| name.askers.len()).sum::<usize>() >= MOST_QUESTIONS {
            let reason = format!("{MOST_QUESTIONS} questions for names wait already");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
        }
        match line.names.iter_mut().find(|name| name.host == host) {
            Some(name) => name.askers.push(asker),
            None => line.names.push_back(Name { host: host.to_owned(), begun: false, askers: vec![asker] }),
        }
        let staffed = self.0.staff(&mut line);
        drop(line);
        let question = Question { desk: self.0.clone(), host: host.to_owned(), port, answer };
        // Taken back by the drop where nobody is there to ask it.
        staffed.map(|()| question)
    }
}

impl Question {
    /// Is there an answer that was not taken?
    pub fn is_answered(&self) -> bool {
        lock(&self.answer).is_some()
    }

    /// The answer, once.
    ///
    /// # Errors
    /// What the resolver says, or that there is no address.
    pub fn answer(&mut self) -> Option<io::Result<Vec<SocketAddr>>> {
        let answer = lock(&self.answer).take()?;
        Some(match answer {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.iter_mut().for_each(|address| address.set_port(self.port));
                Ok(addresses)
            }
            Ok(_) => Err(io::Error::new(io::ErrorKind::NotFound, format!("the name {} has no address", self.host))),
            Err((kind, reason)) => Err(io::Error::new(kind, reason)),
        })
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut line = self.desk.lock();
        let Some(name) = line.names.iter_mut().find(|name| name.host == self.host) else { return };
        name.askers.retain(|asker| !Arc::ptr_eq(&asker.answer, &self.answer));
        // One that a thread is at cannot be taken back: whoever asks again meanwhile waits for the same answer.
        line.names.retain(|name| name.begun || !name.askers.is_empty());
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// Starts a thread if there is work for one more.
    fn staff(self: &Arc<Self>, line: &mut Line) -> io::Result<()> {
        let begun = line.names.iter().filter(|name| name.begun).count();
        let waiting = line.names.len() - begun;
        // Those that have not begun yet take one each.
        if line.threads >= THREADS || waiting <= line.threads - begun {
            return Ok(());
        }
        let desk = self.clone();
        match spawn_apart_with("resolve", STACK, move || desk.work()) {
            Ok(()) => line.threads += 1,
            // Otherwise it waits for one of the others.
            Err(error) if line.threads == 0 => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    /// Asks for one name after the other until none waits.
    fn work(&self) {
        loop {
            let mut line = self.lock();
            let Some(name) = line.names.iter_mut().find(|name| !name.begun) else {
                line.threads -= 1;
                return;
            };
            name.begun = true;
            let host = name.host.clone();
            drop(line);
            let answer = (self.look_up)(&host).map_err(|error| (error.kind(), error.to_string()));
            let mut line = self.lock();
            let asked = line.names.iter().position(|name| name.host == host).and_then(|at| line.names.remove(at));
            drop(line);
            for asker in asked.into_iter().flat_map(|name| name.askers) {
                *lock(&asker.answer) = Some(answer.clone());
                (asker.tell)();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.0.lock();
        f.debug_struct("Resolver").field("names", &line.names.len()).field("threads", &line.threads).finish()
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);

    /// A resolver whose answers the test gives: it says which name it is asked for, and waits until that name is let go.
    struct Rig {
        resolver: Resolver,
        begun: Receiver<String>,
        gates: Arc<Mutex<HashMap<String, Receiver<Answer>>>>,
    }

    impl Rig {
        fn new() -> Rig {
            let (tell, begun) = channel();
            let gates: Arc<Mutex<HashMap<String, Receiver<Answer>>>> = Arc::default();
            let at = gates.clone();
            let resolver = Resolver::new(move |host| {
                tell.send(host.to_owned()).unwrap();
                let gate = lock(&at).remove(host).expect("the test expects this name");
                gate.recv().unwrap_or(Ok(Vec::new())).map_err(|(kind, reason)| io::Error::new(kind, reason))
            });
            Rig { resolver, begun, gates }
        }

        /// `host` will be asked for.
        fn expect(&self, host: &str) -> Sender<Answer> {
            let (open, gate) = channel();
            assert!(lock(&self.gates).insert(host.to_owned(), gate).is_none());
            open
        }

        /// Asks for `host`; the receiver hears when there is an answer.
        fn ask(&self, host: &str, port: u16) -> (Question, Receiver<()>) {
            let (tell, told) = channel();
            (self.resolver.ask(host, port, move || tell.send(()).unwrap()).unwrap(), told)
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_asked_for_once_and_told_to_all_who_want_it() {
        let rig = Rig::new();
        let open = rig.expect("a.test");
        let (mut first, told) = rig.ask("a.test", 3260);
        assert_eq!(rig.begun.recv_timeout(SOON).unwrap(), "a.test");
        let (mut second, told_too) = rig.ask("a.test", 4420);
        let (dropped, never) = rig.ask("a.test", 1);
        drop(dropped);
        assert!(first.answer().is_none());
        open.send(Ok(vec![address("192.0.2.1:0"), address("[2001:db8::1]:0")])).unwrap();
        told.recv_timeout(SOON).unwrap();
        told_too.recv_timeout(SOON).unwrap();
        assert_eq!(first.answer().unwrap().unwrap(), [address("192.0.2.1:3260"), address("[2001:db8::1]:3260")]);
        assert_eq!(second.answer().unwrap().unwrap()[0], address("192.0.2.1:4420"));
        assert!(first.answer().is_none() && never.try_recv().is_err() && rig.begun.try_recv().is_err());
        for (answer, words) in [(Ok(vec![]), "no address"), (Err((io::ErrorKind::Other, "away".into())), "away")] {
            let open = rig.expect("b.test");
            let (mut question, told) = rig.ask("b.test", 1);
            open.send(answer).unwrap();
            told.recv_timeout(SOON).unwrap();
            let error = question.answer().unwrap().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    /// A name that nobody answers costs one thread, and no more are started than there may be; what nobody wants any more is not asked for.
    #[test]
    fn few_threads_ask_and_what_was_taken_back_is_not_asked() {
        let rig = Rig::new();
        let names: Vec<String> = (0..THREADS + 2).map(|n| format!("n{n}.test")).collect();
        let gates: Vec<_> = names.iter().map(|name| rig.expect(name)).collect();
        let mut asked: Vec<_> = names.iter().map(|name| rig.ask(name, 1)).collect();
        let mut begun: Vec<String> = (0..THREADS).map(|_| rig.begun.recv_timeout(SOON).unwrap()).collect();
        begun.sort();
        assert_eq!((&begun[..], rig.resolver.0.lock().threads), (&names[..THREADS], THREADS));
        assert!(rig.begun.try_recv().is_err(), "the others wait");
        let last = asked.pop().unwrap();
        drop(asked.pop());
        gates[3].send(Ok(vec![address("192.0.2.3:0")])).unwrap();
        assert_eq!(rig.begun.recv_timeout(SOON).unwrap(), names[THREADS + 1], "the one before was taken back");
        let (mut question, told) = asked.remove(3);
        told.recv_timeout(SOON).unwrap();
        assert_eq!(question.answer().unwrap().unwrap(), [address("192.0.2.3:1")]);
        drop((asked, last));
        gates.iter().for_each(|gate| drop(gate.send(Ok(Vec::new()))));
    }

    #[test]
    fn no_more_questions_wait_than_there_may_be() {
        let rig = Rig::new();
        let _open = rig.expect("a.test");
        let mut all: Vec<_> = (0..MOST_QUESTIONS).map(|_| rig.ask("a.test", 1).0).collect();
        let refused = rig.resolver.ask("a.test", 1, || ()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        all.pop();
        assert!(rig.resolver.ask("a.test", 1, || ()).is_ok());
    }
}
