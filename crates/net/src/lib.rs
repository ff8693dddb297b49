//! TCP byte streams for polled protocols: one system call for all that leaves in a turn, one for all that came.
//! Also the few calls on other descriptors that more than one crate needs: eventfds of a peer, UNIX sockets in the file
//! system, descriptors whose close may wait.
//!
//! **Knows:** non-blocking TCP sockets, lists of memory to send from and to receive into (headers of the protocol beside
//! [`polypath_memory::View`]s of a guest's or a program's buffers), CRC-32C, what system calls and bytes each stream cost.
//!
//! **Refuses to know:** any protocol, time (deadlines belong to whoever polls; a [`Peer`] is timed), threads (but the one of a [`Closer`] and the few of a [`Resolver`]). It never blocks, except [`resolve()`],
//! which says so.
//!
//! **Threading:** a stream belongs to the thread that polls it. [`EventNotifier`] has a thread of its own only on systems without asynchronous
//! I/O, and, as [`EventListener`], for a [`Peer`] whose eventfds take long.
//!
//! **Unsafe:** yes: `sendmsg`, `recvmsg` over memory that others may write meanwhile, so that it can never be a `&[u8]`; the calls of
//! asynchronous I/O, for which there is no library.
//! [`Gather`] and [`Scatter`] keep what they point at borrowed until the call is over.
//!
//! Data bytes are not copied here: on the way out the list points at the segments themselves, on the way in at the segments or
//! at the protocol's receive buffer. The one exception is memory that the kernel cannot read because the file behind it was
//! truncated: it is then copied (as zeroes) so that the error stays with whoever did that.
//!
//! Another backend (io_uring, a simulated network) comes in behind [`Transport`] and [`Dialer`]. Read `transport.rs` first.

mod bell;
mod closer;
mod digest;
mod hear;
mod helper;
mod list;
mod listener;
mod peer;
mod plain;
pub mod plan;
mod ready;
mod resolve;
mod resolver;
mod signal;
mod stream;
mod thread;
mod transport;
mod unix;

pub use bell::Bell;
pub use closer::{Closer, Theirs};
pub use digest::{Crc32c, crc32c};
pub use hear::EventListener;
pub use list::{Gather, IOV_MAX, IoList, Scatter};
pub use listener::Listener;
pub use peer::Peer;
pub use plain::send_on;
pub use ready::any_ready;
pub use resolve::resolve;
pub use resolver::{Question, Resolver};
pub use signal::EventNotifier;
pub use stream::{TcpDialer, TcpStream};
pub use transport::{Counters, Dialer, Received, Transport};
pub use unix::{SocketAccess, UnixSocket, UnixSocketError};
