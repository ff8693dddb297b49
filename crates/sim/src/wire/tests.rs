use super::*;
use core::time::Duration;
use polypath_block::Waits;
use polypath_net::{Dialer, Gather, IoList, Received, Transport};

const ADDRESS: &str = "10.0.0.1:4420";

fn address() -> SocketAddr {
    ADDRESS.parse().unwrap()
}

fn pass(net: &Net, ms: u64) {
    net.advance_to(net.now().after(Duration::from_millis(ms)));
}

/// A network, a stream that was dialled, and the listener's end of it.
fn pair(seed: u64, buffer: usize) -> (Net, Box<dyn Transport>, SimStream) {
    let net = Net::new(seed, Time::from_millis(1), buffer);
    net.listen(address(), true);
    let mut host = SimDialer(net.clone()).dial(address()).unwrap();
    assert!(!host.poll_connected().unwrap(), "a dial takes time");
    pass(&net, 1);
    assert!(host.poll_connected().unwrap());
    let target = net.accept(address()).unwrap();
    (net, host, target)
}

fn send(stream: &mut dyn Transport, bytes: &[u8]) -> std::io::Result<usize> {
    let mut list = IoList::new();
    let mut gather: Gather<'_> = list.gather();
    gather.bytes(bytes);
    stream.send(&gather)
}

fn receive(stream: &mut dyn Transport, room: usize) -> std::io::Result<(Received, Vec<u8>)> {
    let mut bytes = vec![0; room];
    let mut list = IoList::new();
    let mut scatter = list.scatter();
    scatter.bytes(&mut bytes);
    let received = stream.receive(&mut scatter)?;
    bytes.truncate(if let Received::Bytes(n) = received { n } else { 0 });
    Ok((received, bytes))
}

fn numbered(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn bytes_come_in_order_and_once_however_they_are_cut_up() {
    for seed in 0..50 {
        let (net, mut host, mut target) = pair(seed, 10_000);
        let shape = Shape { delay_us: (10, 500), packet: 700, ..Shape::default() };
        Way::ALL.into_iter().for_each(|way| net.shape(address(), way, shape));
        let data = numbered(100_000);
        let (mut sent, mut got, mut partial) = (0, Vec::new(), 0);
        while got.len() < data.len() {
            let n = send(&mut *host, &data[sent..]).unwrap();
            partial += usize::from(n < data.len() - sent);
            sent += n;
            pass(&net, 1);
            target.read(&mut got).unwrap();
        }
        assert!(got == data, "seed {seed}");
        assert!(partial >= 9, "seed {seed}: a buffer of 10000 bytes takes 100000 in parts");
        assert_eq!(host.counters().bytes_out, 100_000);
        assert_eq!(target.write(b"back").unwrap(), 4);
        pass(&net, 1);
        assert_eq!(receive(&mut *host, 2).unwrap().1, b"ba");
        assert_eq!(receive(&mut *host, 9).unwrap().1, b"ck");
        assert_eq!(receive(&mut *host, 9).unwrap().0, Received::Nothing);
    }
}

#[test]
fn a_full_buffer_takes_nothing_until_it_is_read() {
    let (net, mut host, mut target) = pair(1, 1000);
    assert_eq!(send(&mut *host, &[7; 5000]).unwrap(), 1000);
    pass(&net, 100);
    assert_eq!(send(&mut *host, &[7; 10]).unwrap(), 0, "arrived is not read");
    let mut waits = Waits::default();
    host.arm(&mut waits, true);
    assert!(!net.is_ready(&waits.interests[0]));
    target.read(&mut Vec::new()).unwrap();
    assert!(net.is_ready(&waits.interests[0]), "there is room");
    assert_eq!(send(&mut *host, &[7; 10]).unwrap(), 10);
}

#[test]
fn a_cut_way_is_silent_and_delivers_after_it_is_healed() {
    for way in Way::ALL {
        let (net, mut host, mut target) = pair(3, 10_000);
        net.shape(address(), way, Shape { cut: true, ..Shape::default() });
        send(&mut *host, b"question").unwrap();
        target.write(b"answer").unwrap();
        pass(&net, 1000);
        let mut heard = Vec::new();
        let cut_there = way == Way::ToTarget;
        assert_eq!(target.read(&mut heard).unwrap() == Received::Nothing, cut_there);
        assert_eq!(receive(&mut *host, 20).unwrap().0 == Received::Nothing, !cut_there);
        let silent = host.unacknowledged().expect("its host notices either way");
        assert!(silent >= Duration::from_millis(999), "{silent:?}");
        net.shape(address(), way, Shape::default());
        assert_eq!(host.unacknowledged(), None);
        pass(&net, 30);
        if cut_there {
            target.read(&mut heard).unwrap();
            assert_eq!(heard, b"question");
        } else {
            assert_eq!(receive(&mut *host, 20).unwrap().1, b"answer");
        }
    }
}

#[test]
fn a_dial_over_a_cut_way_waits_and_a_closed_port_refuses() {
    let net = Net::new(1, Time::from_millis(1), 1000);
    let mut refused = SimDialer(net.clone()).dial(address()).unwrap();
    pass(&net, 1);
    assert_eq!(refused.poll_connected().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    net.listen(address(), true);
    net.shape(address(), Way::ToHost, Shape { cut: true, ..Shape::default() });
    let mut waits = Waits::default();
    let mut late = SimDialer(net.clone()).dial(address()).unwrap();
    late.arm(&mut waits, false);
    assert!(waits.interests[0].write, "room to send is how a connection shows that it is made");
    pass(&net, 1000);
    assert!(!late.poll_connected().unwrap() && !net.is_ready(&waits.interests[0]));
    net.shape(address(), Way::ToHost, Shape::default());
    pass(&net, 30);
    late.arm(&mut waits, false);
    assert!(net.is_ready(&waits.interests[1]), "who armed after it was made has not been told yet");
    assert!(late.poll_connected().unwrap() && net.is_ready(&waits.interests[0]));
}

#[test]
fn a_reset_overtakes_what_was_not_read_and_a_cut_swallows_it() {
    let (net, mut host, mut target) = pair(5, 10_000);
    send(&mut *host, b"seen").unwrap();
    pass(&net, 1);
    target.write(b"never read").unwrap();
    host.abort();
    assert!(send(&mut *host, b"x").is_err() && host.poll_connected().is_err());
    pass(&net, 1);
    assert_eq!(target.read(&mut Vec::new()).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let (net, mut host, mut target) = pair(6, 10_000);
    net.shape(address(), Way::ToTarget, Shape { cut: true, ..Shape::default() });
    send(&mut *host, b"lost with the host's will to send it again").unwrap();
    host.abort();
    net.shape(address(), Way::ToTarget, Shape::default());
    pass(&net, 1000);
    assert_eq!(target.read(&mut Vec::new()).unwrap(), Received::Nothing, "nobody has told it");
    target.write(b"anybody there?").unwrap();
    pass(&net, 1);
    assert!(target.read(&mut Vec::new()).is_err(), "who sends to an end that is gone is reset");
}

#[test]
fn what_left_before_an_abort_arrives_and_what_waits_does_not() {
    let (net, mut host, mut target) = pair(7, 1 << 20);
    net.shape(address(), Way::ToTarget, Shape { bytes_per_s: 1_000_000, packet: 1000, ..Shape::default() });
    assert_eq!(send(&mut *host, &[1; 100_000]).unwrap(), 100_000);
    pass(&net, 10);
    let mut got = Vec::new();
    target.read(&mut got).unwrap();
    assert!((8_000..=11_000).contains(&got.len()), "10 ms at 1 MB/s: {}", got.len());
    host.abort();
    pass(&net, 1000);
    assert!(target.read(&mut got).is_err());
}

#[test]
fn an_end_in_order_comes_behind_the_last_byte() {
    let (net, mut host, mut target) = pair(8, 10_000);
    send(&mut *host, b"last words").unwrap();
    drop(host);
    pass(&net, 1);
    let mut got = Vec::new();
    assert_eq!(target.read(&mut got).unwrap(), Received::Bytes(10));
    assert_eq!(target.read(&mut got).unwrap(), Received::End);
    assert_eq!(target.read(&mut got).unwrap(), Received::End, "and stays so");
}

#[test]
fn connections_overtake_each_other() {
    let overtaken = (0..20).filter(|&seed| {
        let net = Net::new(seed, Time::from_millis(1), 1000);
        net.listen(address(), true);
        net.shape(address(), Way::ToTarget, Shape { skew_us: 500, ..Shape::default() });
        let mut hosts = [0, 1].map(|_| SimDialer(net.clone()).dial(address()).unwrap());
        pass(&net, 5);
        let mut targets = [0, 1].map(|_| net.accept(address()).unwrap());
        targets.sort_by_key(SimStream::connection);
        let ids = net.connections(address());
        assert_eq!(ids.len(), 2);
        net.lag(ids[0], Way::ToTarget, seed % 2 * 1000);
        send(&mut *hosts[0], b"first").unwrap();
        send(&mut *hosts[1], b"second").unwrap();
        loop {
            net.advance_to(net.next_event().expect("both arrive"));
            let [first, second] = targets.each_mut().map(|t| t.read(&mut Vec::new()).unwrap() != Received::Nothing);
            if first || second {
                return second && !first;
            }
        }
    });
    assert!((5..20).contains(&overtaken.count()));
}

#[test]
fn the_same_seed_gives_the_same_wire() {
    let run = |seed| {
        let (net, mut host, _target) = pair(seed, 1 << 20);
        send(&mut *host, &numbered(50_000)).unwrap();
        let mut times = Vec::new();
        while let Some(at) = net.next_event() {
            net.advance_to(at);
            times.push(at);
        }
        times
    };
    assert_eq!(run(4), run(4));
    assert_ne!(run(4), run(5));
}
