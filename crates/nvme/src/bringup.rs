//! Bringing a controller up: the one machine that serves PCIe (registers by MMIO) and fabrics (Property
//! Get and Set), after Base 2.1 section 3.5.
//!
//! It does no I/O and reads no clock. The caller asks [`Bringup::poll_request`] what to do, does it, and
//! hands the result to [`Bringup::handle_value`] or [`Bringup::handle_written`]. Every wait is bounded by
//! what the controller itself promises (CAP.TO, or CRTO where CAP.CRMS says so). The bound of a single
//! register access is the caller's, who knows its transport.

use crate::properties::{Cap, Cc, Csts, Register, Version};

const MS: u64 = 1_000_000;
/// What a controller with CAP.TO = 0 gets.
const LEAST_TIMEOUT_MS: u64 = 500;

/// How the controller's queues and data are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// Memory transport: the admin queue is in our memory and pages matter.
    Memory {
        /// Admin queue attributes: sizes, zero-based, submission in bits 11:0, completion in 27:16.
        aqa: u32,
        /// Bus address of the admin submission queue.
        asq: u64,
        /// Bus address of the admin completion queue.
        acq: u64,
        /// Our page as a power of two.
        page_shift: u8,
    },
    /// Message transport (fabrics): the admin queue exists since Connect; pages do not matter.
    Message,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Transport.
    pub attachment: Attachment,
    /// Only admin commands are needed (a discovery controller); a controller without any I/O command set
    /// will do.
    pub admin_only: bool,
    /// Pause between two looks at CSTS, in nanoseconds.
    pub poll_interval_ns: u64,
}

impl Config {
    /// For fabrics: a look every 10 ms, since each is a round trip.
    pub fn fabrics() -> Self {
        Config { attachment: Attachment::Message, admin_only: false, poll_interval_ns: 10 * MS }
    }
}

/// What the caller shall do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Access this register, then tell.
    Register(RegOp),
    /// Nothing before this time (nanoseconds since the caller's epoch).
    Wait(u64),
    /// The controller is ready; there is no more to do.
    Done(Ready),
    /// It failed; there is no more to do.
    Failed(BringupError),
}

/// A register access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegOp {
    /// Read; answer with [`Bringup::handle_value`].
    Read(Register),
    /// Write; answer with [`Bringup::handle_written`].
    Write(Register, u64),
}

impl RegOp {
    /// The register.
    pub fn register(self) -> Register {
        match self {
            RegOp::Read(r) | RegOp::Write(r, _) => r,
        }
    }
}

/// A controller that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Capabilities.
    pub cap: Cap,
    /// Version.
    pub version: Version,
    /// The configuration that was written.
    pub cc: Cc,
}

/// Why a controller did not come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BringupError {
    /// Reads return all ones.
    #[error("the controller is gone: register {0:?} reads all ones")]
    Gone(Register),
    /// CSTS.CFS.
    #[error("the controller reports a fatal status (CSTS.CFS) while {0}; it needs a reset or power cycle")]
    Fatal(&'static str),
    /// A bound passed.
    #[error("the controller did not finish {what} within {waited_ms} ms, the time it promises in CAP.TO")]
    Timeout {
        /// What it was doing.
        what: &'static str,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// No command set we can use.
    #[error("the controller has no I/O command set (CAP.CSS); only a discovery controller may lack one")]
    NoCommandSet,
    /// Pages too large for us.
    #[error("the controller's smallest page is 2^{min} bytes, ours is 2^{ours}")]
    PageSize {
        /// CAP.MPSMIN as a power of two.
        min: u8,
        /// Ours.
        ours: u8,
    },
    /// An answer to a question that was not asked.
    #[error("register answer out of turn: a fault of the caller")]
    OutOfTurn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    ReadCap,
    ReadCrto,
    ReadCc,
    /// CC.EN = 1 but perhaps not ready yet: clearing EN before RDY is undefined, so settle first.
    Settle,
    Disable,
    AwaitNotReady,
    WriteAqa,
    WriteAsq,
    WriteAcq,
    Enable,
    AwaitReady,
    ReadVs,
    Done(Version),
    Failed(BringupError),
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Bringup {
    config: Config,
    step: Step,
    cap: Cap,
    /// What CC was found to be, then what it was set to.
    cc: Cc,
    timeout_ms: u64,
    deadline: u64,
    not_before: u64,
}

impl Bringup {
    /// A machine at its first step.
    pub fn new(config: Config) -> Self {
        Bringup {
            config,
            step: Step::ReadCap,
            cap: Cap(0),
            cc: Cc(0),
            timeout_ms: LEAST_TIMEOUT_MS,
            deadline: u64::MAX,
            not_before: 0,
        }
    }

    /// What to do now. Asking again without answering repeats the request.
    pub fn poll_request(&self, now_ns: u64) -> Request {
        let read = |r| Request::Register(RegOp::Read(r));
        let write = |r, v| Request::Register(RegOp::Write(r, v));
        let Config { attachment, .. } = self.config;
        match self.step {
            Step::ReadCap => read(Register::Cap),
            Step::ReadCrto => read(Register::Crto),
            Step::ReadCc => read(Register::Cc),
            Step::Settle | Step::AwaitNotReady | Step::AwaitReady if now_ns < self.not_before => {
                Request::Wait(self.not_before)
            }
            Step::Settle | Step::AwaitNotReady | Step::AwaitReady => read(Register::Csts),
            Step::Disable => write(Register::Cc, u64::from(self.cc.disabled().0)),
            Step::WriteAqa | Step::WriteAsq | Step::WriteAcq => match (attachment, self.step) {
                (Attachment::Memory { aqa, .. }, Step::WriteAqa) => write(Register::Aqa, u64::from(aqa)),
                (Attachment::Memory { asq, .. }, Step::WriteAsq) => write(Register::Asq, asq),
                (Attachment::Memory { acq, .. }, _) => write(Register::Acq, acq),
                (Attachment::Message, _) => Request::Failed(BringupError::OutOfTurn),
            },
            Step::Enable => write(Register::Cc, u64::from(self.cc.0)),
            Step::ReadVs => read(Register::Vs),
            Step::Done(version) => Request::Done(Ready { cap: self.cap, version, cc: self.cc }),
            Step::Failed(e) => Request::Failed(e),
        }
    }

    /// The register that was asked for reads `value`.
    ///
    /// # Errors
    /// What the value says is wrong; the machine stays failed.
    pub fn handle_value(&mut self, now_ns: u64, value: u64) -> Result<(), BringupError> {
        let outcome = self.take_value(now_ns, value);
        self.settle_outcome(outcome)
    }

    /// The register that was asked for has been written.
    ///
    /// # Errors
    /// [`BringupError::OutOfTurn`] when none was.
    pub fn handle_written(&mut self, now_ns: u64) -> Result<(), BringupError> {
        let next = match self.step {
            Step::Disable => self.wait_in(Step::AwaitNotReady, now_ns),
            Step::WriteAqa => Ok(Step::WriteAsq),
            Step::WriteAsq => Ok(Step::WriteAcq),
            Step::WriteAcq => Ok(Step::Enable),
            Step::Enable => self.wait_in(Step::AwaitReady, now_ns),
            _ => Err(BringupError::OutOfTurn),
        };
        self.settle_outcome(next)
    }

    /// The controller refused the access. Only CRTO may be refused (a fabrics controller need not have the
    /// property); then CAP.TO stands.
    ///
    /// # Errors
    /// [`BringupError::OutOfTurn`] for any other register: the caller has a better error of its own.
    pub fn handle_refused(&mut self) -> Result<(), BringupError> {
        let next = match self.step {
            Step::ReadCrto => Ok(Step::ReadCc),
            _ => Err(BringupError::OutOfTurn),
        };
        self.settle_outcome(next)
    }

    /// The time by which the present wait must end, in nanoseconds; `u64::MAX` when there is none.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline
    }

    fn settle_outcome(&mut self, next: Result<Step, BringupError>) -> Result<(), BringupError> {
        match next {
            Ok(step) => {
                self.step = step;
                Ok(())
            }
            Err(e) => {
                self.step = Step::Failed(e);
                Err(e)
            }
        }
    }

    fn take_value(&mut self, now_ns: u64, value: u64) -> Result<Step, BringupError> {
        match self.step {
            Step::ReadCap => {
                if value == u64::MAX {
                    return Err(BringupError::Gone(Register::Cap));
                }
                self.cap = Cap(value);
                self.timeout_ms = self.cap.timeout_ms().max(LEAST_TIMEOUT_MS);
                self.check_capabilities()?;
                Ok(if self.cap.has_crto() { Step::ReadCrto } else { Step::ReadCc })
            }
            Step::ReadCrto => {
                let with_media_ms = (value & 0xffff) * 500;
                let without_media_ms = (value >> 16 & 0xffff) * 500;
                self.timeout_ms = self.timeout_ms.max(with_media_ms).max(without_media_ms);
                Ok(Step::ReadCc)
            }
            Step::ReadCc => {
                if value as u32 == u32::MAX {
                    return Err(BringupError::Gone(Register::Cc));
                }
                self.cc = Cc(value as u32);
                let step = if self.cc.is_enabled() { Step::Settle } else { Step::AwaitNotReady };
                self.wait_in(step, now_ns)
            }
            Step::Settle | Step::AwaitNotReady | Step::AwaitReady => self.take_status(now_ns, value as u32),
            Step::ReadVs => {
                if value as u32 == u32::MAX {
                    return Err(BringupError::Gone(Register::Vs));
                }
                Ok(Step::Done(Version(value as u32)))
            }
            _ => Err(BringupError::OutOfTurn),
        }
    }

    fn take_status(&mut self, now_ns: u64, value: u32) -> Result<Step, BringupError> {
        if value == u32::MAX {
            return Err(BringupError::Gone(Register::Csts));
        }
        let csts = Csts::from_bits_retain(value);
        let (ready, fatal) = (csts.contains(Csts::RDY), csts.contains(Csts::CFS));
        let late = now_ns >= self.deadline;
        self.not_before = now_ns.saturating_add(self.config.poll_interval_ns);
        match self.step {
            // A fatal status is cured by the disable that follows; so is a controller that never got ready.
            Step::Settle if ready || fatal || late => Ok(Step::Disable),
            Step::AwaitNotReady if !ready => {
                self.deadline = u64::MAX;
                self.cc = self.configuration();
                Ok(match self.config.attachment {
                    Attachment::Memory { .. } => Step::WriteAqa,
                    Attachment::Message => Step::Enable,
                })
            }
            Step::AwaitReady if fatal => Err(BringupError::Fatal("being enabled")),
            Step::AwaitReady if ready => {
                self.deadline = u64::MAX;
                Ok(Step::ReadVs)
            }
            step if late => Err(BringupError::Timeout {
                what: if step == Step::AwaitReady { "being enabled" } else { "being disabled" },
                waited_ms: self.timeout_ms,
            }),
            step => Ok(step),
        }
    }

    fn wait_in(&mut self, step: Step, now_ns: u64) -> Result<Step, BringupError> {
        self.deadline = now_ns.saturating_add(self.timeout_ms * MS);
        self.not_before = now_ns;
        Ok(step)
    }

    fn check_capabilities(&self) -> Result<(), BringupError> {
        // CSS of all zeroes is taken for the NVM command set, as SPDK and Linux do: devices report it.
        let css_none_only = self.cap.css_none() && !self.cap.css_nvm() && !self.cap.css_io();
        if css_none_only && !self.config.admin_only {
            return Err(BringupError::NoCommandSet);
        }
        if let Attachment::Memory { page_shift: ours, .. } = self.config.attachment {
            let min = self.cap.page_shift_min();
            if min > ours {
                return Err(BringupError::PageSize { min, ours });
            }
        }
        Ok(())
    }

    fn configuration(&self) -> Cc {
        let css = if self.cap.css_nvm() {
            Cc::CSS_NVM
        } else if self.cap.css_io() {
            Cc::CSS_IO
        } else if self.cap.css_none() {
            Cc::CSS_ADMIN
        } else {
            Cc::CSS_NVM
        };
        let min = self.cap.page_shift_min();
        let max = self.cap.page_shift_max().max(min);
        let page_shift = match self.config.attachment {
            Attachment::Memory { page_shift, .. } => page_shift.clamp(min, max),
            Attachment::Message => min,
        };
        Cc::enable(css, page_shift, 6, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: u64 = 1 << 37 | 4 << 24 | 127; // TO = 2 s

    /// One exchange: what the machine must ask, and what it is answered.
    enum T {
        /// Reads this, gets that.
        R(Register, u64),
        /// Writes this value.
        W(Register, u64),
        /// Waits; the clock moves on by this many ms.
        Wait(u64),
        /// Reads this, gets that, and fails.
        Bad(Register, u64, BringupError),
    }
    use Register::{Acq, Aqa, Asq, Cap as RCap, Cc as RCc, Crto, Csts as RCsts, Vs};
    use T::{Bad, R, W, Wait};

    fn run(config: Config, table: &[T]) -> Request {
        let mut m = Bringup::new(config);
        let mut now = 1_000 * MS;
        for (i, t) in table.iter().enumerate() {
            let asked = m.poll_request(now);
            match *t {
                R(reg, v) => {
                    assert_eq!(asked, Request::Register(RegOp::Read(reg)), "line {i}");
                    m.handle_value(now, v).unwrap();
                }
                Bad(reg, v, e) => {
                    assert_eq!(asked, Request::Register(RegOp::Read(reg)), "line {i}");
                    assert_eq!(m.handle_value(now, v), Err(e), "line {i}");
                }
                W(reg, v) => {
                    assert_eq!(asked, Request::Register(RegOp::Write(reg, v)), "line {i}");
                    m.handle_written(now).unwrap();
                }
                Wait(ms) => {
                    assert!(matches!(asked, Request::Wait(_)), "line {i}: {asked:?}");
                    now += ms * MS;
                }
            }
        }
        m.poll_request(now)
    }

    #[test]
    fn fabrics_controller_comes_up() {
        let end = run(
            Config::fabrics(),
            &[
                R(RCap, CAP),
                R(RCc, 0),
                R(RCsts, 0),
                W(RCc, 0x0046_0001),
                R(RCsts, 0),
                Wait(10),
                R(RCsts, 1),
                R(Vs, 0x2_0100),
            ],
        );
        let ready = Ready { cap: Cap(CAP), version: Version::new(2, 1, 0), cc: Cc(0x0046_0001) };
        assert_eq!(end, Request::Done(ready));
    }

    #[test]
    fn enabled_pcie_controller_is_disabled_first() {
        let attachment = Attachment::Memory { aqa: 0x1f_001f, asq: 0x1000, acq: 0x2000, page_shift: 12 };
        let end = run(
            Config { attachment, admin_only: false, poll_interval_ns: MS },
            &[
                R(RCap, CAP | 1 << 43),
                R(RCc, 0x0046_0001),
                R(RCsts, 0),
                Wait(1),
                R(RCsts, 1),
                W(RCc, 0x0046_0000),
                R(RCsts, 1),
                Wait(1),
                R(RCsts, 0),
                W(Aqa, 0x1f_001f),
                W(Asq, 0x1000),
                W(Acq, 0x2000),
                W(RCc, 0x0046_0001),
                R(RCsts, 1),
                R(Vs, 0x1_0400),
            ],
        );
        assert!(matches!(end, Request::Done(_)));
    }

    #[test]
    fn fatal_before_disable_is_cured_and_after_enable_is_not() {
        let end = run(
            Config::fabrics(),
            &[
                R(RCap, CAP),
                R(RCc, 1),
                R(RCsts, 2),
                W(RCc, 0),
                R(RCsts, 2),
                W(RCc, 0x0046_0001),
                Bad(RCsts, 3, BringupError::Fatal("being enabled")),
            ],
        );
        assert_eq!(end, Request::Failed(BringupError::Fatal("being enabled")));
    }

    #[test]
    fn waits_are_bounded_by_cap_to() {
        let late = |what| BringupError::Timeout { what, waited_ms: 2000 };
        run(
            Config::fabrics(),
            &[
                R(RCap, CAP),
                R(RCc, 0),
                R(RCsts, 0),
                W(RCc, 0x0046_0001),
                R(RCsts, 0),
                Wait(1999),
                R(RCsts, 0),
                Wait(10),
                Bad(RCsts, 0, late("being enabled")),
            ],
        );
        run(
            Config::fabrics(),
            &[R(RCap, CAP), R(RCc, 0), R(RCsts, 1), Wait(2000), Bad(RCsts, 1, late("being disabled"))],
        );
        // Never ready although enabled: given up on, then disabled.
        let end = run(Config::fabrics(), &[R(RCap, CAP), R(RCc, 1), R(RCsts, 0), Wait(2000), R(RCsts, 0)]);
        assert_eq!(end, Request::Register(RegOp::Write(RCc, 0)));
    }

    #[test]
    fn crto_lengthens_the_bound_and_may_be_refused() {
        let cap = CAP | 1 << 59;
        let mut m = Bringup::new(Config::fabrics());
        m.handle_value(0, cap).unwrap();
        assert_eq!(m.poll_request(0), Request::Register(RegOp::Read(Crto)));
        let mut refused = m.clone();
        refused.handle_refused().unwrap();
        assert_eq!(refused.poll_request(0), Request::Register(RegOp::Read(RCc)));
        m.handle_value(0, 20).unwrap();
        m.handle_value(0, 0).unwrap();
        assert_eq!(m.deadline_ns(), 10_000 * MS);
        assert_eq!(refused.handle_refused(), Err(BringupError::OutOfTurn));
    }

    #[test]
    fn capabilities_are_checked() {
        let only_admin = 1 << 44;
        run(Config::fabrics(), &[Bad(RCap, only_admin, BringupError::NoCommandSet)]);
        let end = run(Config { admin_only: true, ..Config::fabrics() }, &[R(RCap, only_admin), R(RCc, 0), R(RCsts, 0)]);
        assert_eq!(end, Request::Register(RegOp::Write(RCc, 0x0046_0071)));
        run(Config::fabrics(), &[Bad(RCap, u64::MAX, BringupError::Gone(RCap))]);
        run(Config::fabrics(), &[R(RCap, 0), R(RCc, 0), Bad(RCsts, 0xffff_ffff, BringupError::Gone(RCsts))]);
        let attachment = Attachment::Memory { aqa: 0, asq: 0, acq: 0, page_shift: 12 };
        run(
            Config { attachment, ..Config::fabrics() },
            &[Bad(RCap, 1 << 37 | 1 << 48 | 1 << 52, BringupError::PageSize { min: 13, ours: 12 })],
        );
        // A message transport does not care about pages.
        let end = run(Config::fabrics(), &[R(RCap, 1 << 37 | 1 << 48 | 1 << 52), R(RCc, 0), R(RCsts, 0)]);
        assert_eq!(end, Request::Register(RegOp::Write(RCc, 0x0046_0081)));
    }

    #[test]
    fn answers_out_of_turn_fail() {
        let mut m = Bringup::new(Config::fabrics());
        assert_eq!(m.handle_written(0), Err(BringupError::OutOfTurn));
        assert_eq!(m.poll_request(0), Request::Failed(BringupError::OutOfTurn));
    }
}
