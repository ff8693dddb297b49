//! Keep-alive arithmetic: how a controller rounds the timeout, how often the host must show itself, and
//! how long after the last sign of life a controller may still execute a command (Base 2.1 sections
//! 3.9 and 9.6, with the Command Quiesce Time of TP4129).
//!
//! The last is the bound behind the fence of NVMe/TCP: when the host has closed its connections, the
//! controller notices within twice its rounded keep-alive timeout (three times with traffic-based keep
//! alive, because the host's last command may have been counted as traffic of the next interval), and
//! has then stopped everything within its command quiesce time.

/// The keep-alive timeout as the controller rounds it, in milliseconds: up to the next multiple of the
/// granularity KAS, which is in units of 100 ms.
///
/// `None` when either is 0: keep alive is off or not supported.
pub fn rounded_kato_ms(kato_ms: u32, kas: u16) -> Option<u64> {
    let grain_ms = u64::from(kas) * 100;
    if grain_ms == 0 || kato_ms == 0 {
        return None;
    }
    Some(u64::from(kato_ms).div_ceil(grain_ms) * grain_ms)
}

/// How often the host sends Keep Alive, in milliseconds: half the timeout, and no less than 1.
pub fn send_interval_ms(kato_ms: u32) -> u64 {
    (u64::from(kato_ms) / 2).max(1)
}

/// What a controller told about its keep alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// The timeout the host set in Connect, in milliseconds; 0 for none.
    pub kato_ms: u32,
    /// KAS of Identify Controller, in units of 100 ms; 0 when not supported.
    pub kas: u16,
    /// CTRATT bit 6: traffic-based keep alive.
    pub traffic_based: bool,
    /// CQT of Identify Controller in milliseconds; 0 when not reported.
    pub cqt_ms: u16,
}

/// What to assume where a controller tells nothing. Stated in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assumed {
    /// The whole bound when there is no keep alive, in milliseconds.
    pub without_keep_alive_ms: u64,
    /// The quiesce time when the controller reports none, in milliseconds.
    pub quiesce_ms: u64,
}

/// How long after the connections were closed a command may still take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceBound {
    /// Milliseconds.
    pub ms: u64,
    /// What it rests on.
    pub basis: Basis,
}

/// What a [`FenceBound`] rests on. Goes into the log beside every re-driven write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Keep alive and quiesce time, both as the controller reports them.
    Reported,
    /// Keep alive as reported; the quiesce time from the configuration.
    QuiesceAssumed,
    /// All of it from the configuration: the controller has no keep alive.
    Assumed,
}

impl std::fmt::Display for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Basis::Reported => "keep-alive timeout and command quiesce time of the controller",
            Basis::QuiesceAssumed => "keep-alive timeout of the controller, quiesce time from the configuration",
            Basis::Assumed => "configured bound, the controller reports no keep alive",
        })
    }
}

impl Reported {
    /// The bound for a controller that told this.
    pub fn fence_bound(&self, assumed: Assumed) -> FenceBound {
        let Some(kato_ms) = rounded_kato_ms(self.kato_ms, self.kas) else {
            return FenceBound { ms: assumed.without_keep_alive_ms, basis: Basis::Assumed };
        };
        let intervals = if self.traffic_based { 3 } else { 2 };
        let (quiesce_ms, basis) = match self.cqt_ms {
            0 => (assumed.quiesce_ms, Basis::QuiesceAssumed),
            cqt_ms => (u64::from(cqt_ms), Basis::Reported),
        };
        FenceBound { ms: (intervals * kato_ms).saturating_add(quiesce_ms), basis }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_table() {
        for (kato_ms, kas, want) in [
            (0, 10, None),
            (5000, 0, None),
            (5000, 10, Some(5000)),
            (5001, 10, Some(6000)),
            (1, 1, Some(100)),
            (100, 1, Some(100)),
            (101, 1, Some(200)),
            (15_000, 100, Some(20_000)),
            (u32::MAX, u16::MAX, Some(4_299_096_000)),
        ] {
            assert_eq!(rounded_kato_ms(kato_ms, kas), want, "KATO {kato_ms} KAS {kas}");
        }
        assert_eq!(send_interval_ms(5000), 2500);
        assert_eq!(send_interval_ms(1), 1);
    }

    #[test]
    fn fence_table() {
        let assumed = Assumed { without_keep_alive_ms: 60_000, quiesce_ms: 4_000 };
        let r =
            |kato_ms, kas, traffic_based, cqt_ms| Reported { kato_ms, kas, traffic_based, cqt_ms }.fence_bound(assumed);
        assert_eq!(r(1000, 1, false, 500), FenceBound { ms: 2500, basis: Basis::Reported });
        assert_eq!(r(1000, 1, true, 500), FenceBound { ms: 3500, basis: Basis::Reported });
        assert_eq!(r(1050, 1, true, 1), FenceBound { ms: 3301, basis: Basis::Reported });
        assert_eq!(r(1000, 1, false, 0), FenceBound { ms: 6000, basis: Basis::QuiesceAssumed });
        assert_eq!(r(0, 1, false, 500), FenceBound { ms: 60_000, basis: Basis::Assumed });
        assert_eq!(r(1000, 0, true, 500), FenceBound { ms: 60_000, basis: Basis::Assumed });
    }
}
