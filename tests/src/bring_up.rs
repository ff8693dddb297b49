//! The smallest NVMe/TCP exchange there is: ICReq and ICResp, written from the specification and nothing else.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What a controller said in its ICResp (NVMe/TCP Transport Specification, section 3.6.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcResp {
    /// PDU Format Version; 0 in all revisions so far.
    pub pfv: u16,
    /// Controller PDU Data Alignment, zero-based dwords.
    pub cpda_z: u8,
    /// Digests that the controller will use: bit 0 header, bit 1 data.
    pub digests: u8,
    /// Greatest data length of one H2CData PDU, in bytes.
    pub maxh2cdata: u32,
}

/// Connects to 127.0.0.1:`port`, sends an ICReq without digests and reads the ICResp.
///
/// # Errors
/// No connection or no answer within `limit`, or an answer that is not an ICResp.
pub fn initialize_connection(port: u16, limit: Duration) -> Result<IcResp> {
    let deadline = Instant::now() + limit;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream =
        TcpStream::connect_timeout(&address, limit).with_context(|| format!("cannot connect to {address}"))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut request = [0_u8; 128];
    request[2] = 128; // HLEN
    request[4..8].copy_from_slice(&128_u32.to_le_bytes()); // PLEN; PDU type 0 and the rest stay zero
    stream.write_all(&request)?;
    let mut answer = [0_u8; 128];
    stream.read_exact(&mut answer).with_context(|| format!("{address} sent no whole ICResp within {limit:?}"))?;
    if answer[0] != 1 {
        bail!("{address} answered with PDU type {:#04x}, expected ICResp (0x01)", answer[0]);
    }
    ensure!(
        answer[2] == 128 && answer[4..8] == 128_u32.to_le_bytes(),
        "{address}: ICResp with wrong lengths: {:02x?}",
        &answer[..8]
    );
    Ok(IcResp {
        pfv: u16::from_le_bytes([answer[8], answer[9]]),
        cpda_z: answer[10],
        digests: answer[11],
        maxh2cdata: u32::from_le_bytes([answer[12], answer[13], answer[14], answer[15]]),
    })
}
