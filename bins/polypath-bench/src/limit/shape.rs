//! What a request and its answer look like: as much as both sides must look at.

use super::BLOCK;
use crate::protocol::Protocol;

/// The bytes of one protocol. Constants, so that the limit pays for one protocol what it pays for the other.
pub(super) trait Shape: Send + 'static {
    /// Bytes of a request: a read of 4 KiB.
    const REQUEST: usize;
    /// Bytes of an answer before its data.
    const HEADER: usize;
    /// Bytes of an answer.
    const RESPONSE: usize = Self::HEADER + BLOCK;
    /// Where the number of a request lies in it.
    const REQUEST_ID: usize;
    /// Where it lies in an answer.
    const RESPONSE_ID: usize;
    /// First octet of an answer.
    const ANSWER: u8;

    /// What all requests have in common.
    fn request(request: &mut [u8]);
    /// What all answers have in common.
    fn response(header: &mut [u8]);
}

/// A command capsule without data; a data PDU with the SUCCESS flag.
pub(super) struct NvmeTcp;

impl Shape for NvmeTcp {
    const REQUEST: usize = Protocol::NvmeTcp.read_request();
    const HEADER: usize = Protocol::NvmeTcp.read_header();
    /// Command identifier of the capsule.
    const REQUEST_ID: usize = 10;
    /// CCCID of the data PDU.
    const RESPONSE_ID: usize = 8;
    const ANSWER: u8 = 7;

    fn request(request: &mut [u8]) {
        // CapsuleCmd, no flags, header length, no data, length; then a Read of eight 512-byte blocks.
        request[..8].copy_from_slice(&[4, 0, Self::REQUEST as u8, 0, Self::REQUEST as u8, 0, 0, 0]);
        request[8] = 2;
    }

    fn response(header: &mut [u8]) {
        // C2HData, LAST and SUCCESS, header length, data offset, length (NVMe/TCP 1.0 section 3.6.2.10).
        header[..4].copy_from_slice(&[Self::ANSWER, 0b1100, Self::HEADER as u8, Self::HEADER as u8]);
        header[4..8].copy_from_slice(&(Self::RESPONSE as u32).to_le_bytes());
        header[16..20].copy_from_slice(&(BLOCK as u32).to_le_bytes());
    }
}

/// A SCSI Command PDU; a Data-In PDU with status.
pub(super) struct Iscsi;

impl Shape for Iscsi {
    const REQUEST: usize = Protocol::Iscsi.read_request();
    const HEADER: usize = Protocol::Iscsi.read_header();
    /// Initiator Task Tag.
    const REQUEST_ID: usize = 16;
    const RESPONSE_ID: usize = 16;
    const ANSWER: u8 = 0x25;

    fn request(request: &mut [u8]) {
        // SCSI Command, Final and Read, simple (RFC 7143 section 11.3); READ (16) of eight blocks.
        request[..2].copy_from_slice(&[0x01, 0xc1]);
        request[20..24].copy_from_slice(&(BLOCK as u32).to_be_bytes());
        request[32] = 0x88;
        request[45] = 8;
    }

    fn response(header: &mut [u8]) {
        // Data-In, Final and Status, the length of the data segment (RFC 7143 section 11.7).
        header[..2].copy_from_slice(&[Self::ANSWER, 0x81]);
        header[4..8].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    }
}
