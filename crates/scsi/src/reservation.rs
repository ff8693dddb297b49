//! Persistent reservations: the data of PERSISTENT RESERVE IN (SPC-4 6.15) and OUT (SPC-4 6.16).

mod transport_id;

pub use polypath_block::ReservationType;
pub use transport_id::TransportId;

use crate::ParseError;
use crate::wire::{bit, flag, front, get8, get16, get32, get64, len16, len32, put, put16, put32, put64};

/// SCOPE and TYPE in one octet, as PERSISTENT RESERVE OUT has it. The scope is that of the logical unit (zero); there is no other.
pub const fn scope_type(kind: ReservationType) -> u8 {
    kind as u8
}

/// The type of an octet with SCOPE and TYPE.
///
/// # Errors
/// [`ParseError::Value`] for another scope, or a type that there is not.
pub fn parse_scope_type(octet: u8) -> Result<ReservationType, ParseError> {
    ReservationType::from_bits(octet).ok_or(ParseError::Value {
        what: "scope and type of a persistent reservation",
        value: octet.into(),
        expected: "scope 0 and type 1, 3 or 5 to 8",
    })
}

const HEADER: usize = 8;

/// Generation and list of READ KEYS, READ RESERVATION and READ FULL STATUS data.
fn list<'a>(bytes: &'a [u8], what: &'static str) -> Result<(u32, &'a [u8]), ParseError> {
    let head = front(bytes, HEADER, what)?;
    let whole = front(bytes, (get32(head, 4) as usize).saturating_add(HEADER), what)?;
    Ok((get32(head, 0), whole.get(HEADER..).unwrap_or(&[])))
}

fn build_list(generation: u32, body: &[u8]) -> Vec<u8> {
    let mut b = vec![0; HEADER];
    put32(&mut b, 0, generation);
    put32(&mut b, 4, len32(body.len()));
    b.extend_from_slice(body);
    b
}

/// Data of READ KEYS.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Keys {
    /// PRGENERATION: counts changes of registrations.
    pub generation: u32,
    /// The registered keys, one for each nexus.
    pub keys: Vec<u64>,
}

impl Keys {
    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] if the list is longer than what is there: it tells the allocation length that would do.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (generation, list) = list(bytes, "READ KEYS data")?;
        Ok(Keys { generation, keys: list.chunks_exact(8).map(|key| get64(key, 0)).collect() })
    }

    /// The octets; cut them to the allocation length.
    pub fn to_bytes(&self) -> Vec<u8> {
        build_list(self.generation, &self.keys.iter().flat_map(|key| key.to_be_bytes()).collect::<Vec<u8>>())
    }
}

/// Data of READ RESERVATION.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Reservation {
    /// PRGENERATION.
    pub generation: u32,
    /// Key of the holder (zero where all registrants hold it) and type; `None` where nobody holds one.
    pub held: Option<(u64, ReservationType)>,
}

impl Reservation {
    const DESCRIPTOR: usize = 16;

    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] if there is less than the data say, [`ParseError::Value`] as [`parse_scope_type`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (generation, list) = list(bytes, "READ RESERVATION data")?;
        let held = match list.get(..Self::DESCRIPTOR) {
            Some(d) => Some((get64(d, 0), parse_scope_type(get8(d, 13))?)),
            None => None,
        };
        Ok(Reservation { generation, held })
    }

    /// The octets; cut them to the allocation length.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut d = [0; Self::DESCRIPTOR];
        match self.held {
            Some((key, kind)) => {
                put64(&mut d, 0, key);
                d[13] = scope_type(kind);
                build_list(self.generation, &d)
            }
            None => build_list(self.generation, &[]),
        }
    }
}

/// Data of REPORT CAPABILITIES (SPC-4 6.15.4).
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Capabilities {
    /// CRH: RESERVE and RELEASE of old are partly answered by registrants.
    pub compatible_reservations: bool,
    /// SIP_C: registrations for other initiator ports (SPEC_I_PT) are done.
    pub specify_initiator_ports: bool,
    /// ATP_C: registrations through all target ports (ALL_TG_PT) are done.
    pub all_target_ports: bool,
    /// PTPL_C: registrations can outlive a loss of power.
    pub persist_capable: bool,
    /// PTPL_A: and do so now.
    pub persist_active: bool,
    /// ALLOW COMMANDS, three bits: which commands a reservation lets through.
    pub allow_commands: u8,
    /// The types it knows, where TMV says that the mask means something.
    pub types: Option<Vec<ReservationType>>,
}

impl Capabilities {
    /// Octets on the wire.
    pub const LEN: usize = 8;

    /// Bit of PERSISTENT RESERVATION TYPE MASK, counted in the two octets 4 and 5 as a big-endian number.
    const fn mask(kind: ReservationType) -> u16 {
        match kind {
            ReservationType::WriteExclusiveAllRegistrants => 1 << 15,
            ReservationType::ExclusiveAccessRegistrantsOnly => 1 << 14,
            ReservationType::WriteExclusiveRegistrantsOnly => 1 << 13,
            ReservationType::ExclusiveAccess => 1 << 11,
            ReservationType::WriteExclusive => 1 << 9,
            ReservationType::ExclusiveAccessAllRegistrants => 1,
        }
    }

    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] with fewer than 8 octets.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = front(bytes, Self::LEN, "REPORT CAPABILITIES data")?;
        let known = |kind: &ReservationType| get16(b, 4) & Self::mask(*kind) != 0;
        Ok(Capabilities {
            compatible_reservations: bit(b, 2, 4),
            specify_initiator_ports: bit(b, 2, 3),
            all_target_ports: bit(b, 2, 2),
            persist_capable: bit(b, 2, 0),
            persist_active: bit(b, 3, 0),
            allow_commands: get8(b, 3) >> 4 & 7,
            types: bit(b, 3, 7).then(|| ReservationType::ALL.into_iter().filter(known).collect()),
        })
    }

    /// The octets.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put16(&mut b, 0, len16(Self::LEN));
        b[2] = flag(self.compatible_reservations, 4)
            | flag(self.specify_initiator_ports, 3)
            | flag(self.all_target_ports, 2)
            | flag(self.persist_capable, 0);
        b[3] = flag(self.types.is_some(), 7) | (self.allow_commands & 7) << 4 | flag(self.persist_active, 0);
        let types = self.types.iter().flatten();
        put16(&mut b, 4, types.fold(0, |mask, &kind| mask | Self::mask(kind)));
        b
    }
}

/// One registration in READ FULL STATUS data (SPC-4 6.15.5).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct FullStatus {
    /// Its key.
    pub key: u64,
    /// ALL_TG_PT: it is for all target ports.
    pub all_target_ports: bool,
    /// R_HOLDER, with the type: it holds the reservation.
    pub holds: Option<ReservationType>,
    /// RELATIVE TARGET PORT IDENTIFIER; means nothing with `all_target_ports`.
    pub relative_target_port: u16,
    /// Who registered.
    pub initiator: TransportId,
}

/// Data of READ FULL STATUS.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct FullStatusList {
    /// PRGENERATION.
    pub generation: u32,
    /// The registrations.
    pub registrations: Vec<FullStatus>,
}

impl FullStatusList {
    const DESCRIPTOR: usize = 24;

    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] if the list is longer than what is there: it tells the allocation length that would do.
    /// [`ParseError::Value`] for a type that there is not, or a descriptor that runs over the end of the list.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (generation, mut rest) = list(bytes, "READ FULL STATUS data")?;
        let mut registrations = Vec::new();
        while let Some((d, tail)) = rest.split_at_checked(Self::DESCRIPTOR) {
            let more = get32(d, 20);
            let Some((initiator, next)) = tail.split_at_checked(more as usize) else {
                let (what, expected) = ("ADDITIONAL DESCRIPTOR LENGTH", "no more than what is left of the list");
                return Err(ParseError::Value { what, value: more.into(), expected });
            };
            registrations.push(FullStatus {
                key: get64(d, 0),
                all_target_ports: bit(d, 12, 1),
                holds: if bit(d, 12, 0) { Some(parse_scope_type(get8(d, 13))?) } else { None },
                relative_target_port: get16(d, 18),
                initiator: TransportId(initiator.to_vec()),
            });
            rest = next;
        }
        Ok(FullStatusList { generation, registrations })
    }

    /// The octets; cut them to the allocation length.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for registration in &self.registrations {
            let mut d = [0; Self::DESCRIPTOR];
            put64(&mut d, 0, registration.key);
            d[12] = flag(registration.all_target_ports, 1) | flag(registration.holds.is_some(), 0);
            d[13] = registration.holds.map_or(0, scope_type);
            put16(&mut d, 18, registration.relative_target_port);
            put32(&mut d, 20, len32(registration.initiator.0.len()));
            body.extend_from_slice(&d);
            body.extend_from_slice(&registration.initiator.0);
        }
        build_list(self.generation, &body)
    }
}

/// The parameter list of PERSISTENT RESERVE OUT, for every service action but REGISTER AND MOVE (SPC-4 6.16.3).
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct PrOutData {
    /// RESERVATION KEY: ours, as it is registered.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY: the new one, or the one to preempt.
    pub action_key: u64,
    /// ALL_TG_PT: through all target ports.
    pub all_target_ports: bool,
    /// APTPL: to outlive a loss of power.
    pub persist: bool,
    /// With SPEC_I_PT: the initiator ports to register besides ourselves.
    pub initiators: Option<Vec<TransportId>>,
}

impl PrOutData {
    /// Octets of the list without initiator ports; PARAMETER LIST LENGTH is this then.
    pub const LEN: usize = 24;

    /// The octets.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = vec![0; Self::LEN];
        put64(&mut b, 0, self.key);
        put64(&mut b, 8, self.action_key);
        b[20] = flag(self.initiators.is_some(), 3) | flag(self.all_target_ports, 2) | flag(self.persist, 0);
        if let Some(initiators) = &self.initiators {
            let ids: Vec<u8> = initiators.iter().flat_map(|id| id.0.iter().copied()).collect();
            b.extend_from_slice(&len32(ids.len()).to_be_bytes());
            b.extend(ids);
        }
        b
    }

    /// Reads the list.
    ///
    /// # Errors
    /// [`ParseError::Short`] with less than the list says, [`ParseError::Length`] for a list that is longer than 24 octets without
    /// SPEC_I_PT, [`ParseError::Value`] for a TransportID that is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "PERSISTENT RESERVE OUT parameter list";
        let b = front(bytes, Self::LEN, WHAT)?;
        let initiators = if bit(b, 20, 3) {
            let head = front(bytes, Self::LEN + 4, WHAT)?;
            let end = (get32(head, Self::LEN) as usize).saturating_add(head.len());
            Some(TransportId::parse_list(front(bytes, end, WHAT)?.get(head.len()..).unwrap_or(&[]))?)
        } else if bytes.len() == Self::LEN {
            None
        } else {
            return Err(ParseError::Length { what: WHAT, have: bytes.len(), expected: "24 without SPEC_I_PT" });
        };
        let (key, action_key) = (get64(b, 0), get64(b, 8));
        Ok(PrOutData { key, action_key, all_target_ports: bit(b, 20, 2), persist: bit(b, 20, 0), initiators })
    }
}

/// The parameter list of REGISTER AND MOVE (SPC-4 6.16.4).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct RegisterAndMove {
    /// RESERVATION KEY: ours.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY: that of the new holder.
    pub action_key: u64,
    /// UNREG: our own registration ends.
    pub unregister: bool,
    /// APTPL: to outlive a loss of power.
    pub persist: bool,
    /// RELATIVE TARGET PORT IDENTIFIER of the new nexus.
    pub relative_target_port: u16,
    /// The new holder.
    pub initiator: TransportId,
}

impl RegisterAndMove {
    /// Octets before the TransportID.
    const HEADER: usize = 24;

    /// The octets.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = vec![0; Self::HEADER];
        put64(&mut b, 0, self.key);
        put64(&mut b, 8, self.action_key);
        b[17] = flag(self.unregister, 1) | flag(self.persist, 0);
        put16(&mut b, 18, self.relative_target_port);
        put(&mut b, 20, &len32(self.initiator.0.len()).to_be_bytes());
        b.extend_from_slice(&self.initiator.0);
        b
    }

    /// Reads the list.
    ///
    /// # Errors
    /// [`ParseError::Short`] with less than the list says, [`ParseError::Value`] for a TransportID that is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "REGISTER AND MOVE parameter list";
        let head = front(bytes, Self::HEADER, WHAT)?;
        let end = (get32(head, 20) as usize).saturating_add(Self::HEADER);
        let id = front(bytes, end, WHAT)?.get(Self::HEADER..).unwrap_or(&[]);
        Ok(RegisterAndMove {
            key: get64(head, 0),
            action_key: get64(head, 8),
            unregister: bit(head, 17, 1),
            persist: bit(head, 17, 0),
            relative_target_port: get16(head, 18),
            initiator: TransportId::parse(id)?.0,
        })
    }
}

#[cfg(test)]
mod tests;
