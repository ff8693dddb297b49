//! Names to addresses, where blocking is allowed.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// All addresses of `host`, in the order the system prefers them. **Blocks** for as long as the system's resolver does:
/// only for control threads, never for a reactor.
///
/// # Errors
/// What the resolver says, or that there is no address.
pub fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the name {host} has no address")));
    }
    Ok(addresses)
}
