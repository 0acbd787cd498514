//! As much of rtnetlink as networks need: links up, veth pairs, addresses, a default route. Formats: rtnetlink(7).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;

/// A socket that works on the network namespace it was opened in.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The number of the device `name`.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    /// Brings a device up.
    pub(super) fn up(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, 0, &link_header(index, IFF_UP))
    }

    /// Makes a pair: `host` here, `eth0` in `namespace`.
    pub(super) fn veth(&mut self, host: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let fd = u32::try_from(namespace.as_raw_fd()).unwrap_or_default();
        let mut peer = link_header(0, 0);
        attribute(&mut peer, IFLA_IFNAME, b"eth0\0");
        attribute(&mut peer, IFLA_NET_NS_FD, &fd.to_ne_bytes());
        let mut data = Vec::new();
        attribute(&mut data, VETH_INFO_PEER, &peer);
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, b"veth");
        attribute(&mut info, IFLA_INFO_DATA, &data);
        let mut body = link_header(0, 0);
        attribute(&mut body, IFLA_IFNAME, format!("{host}\0").as_bytes());
        attribute(&mut body, IFLA_LINKINFO, &info);
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    /// Gives a device an address.
    pub(super) fn address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        attribute(&mut body, 2, &address.octets());
        attribute(&mut body, 1, &address.octets());
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    /// Sends everything that has no other way to `gateway`.
    pub(super) fn default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        // Main table, made at boot or by an administrator, universe, unicast.
        let mut body = vec![AF_INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        attribute(&mut body, 5, &gateway.octets());
        attribute(&mut body, 4, &index.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    /// Refuses everything to this network at once.
    pub(super) fn unreachable(&mut self, network: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // Main table, made at boot or by an administrator, universe, unreachable.
        let mut body = vec![AF_INET, prefix, 0, 0, 254, 3, 0, 7, 0, 0, 0, 0];
        attribute(&mut body, 1, &network.octets());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = vec![0u8; 8192];
        loop {
            let (received, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            if let Some(result) = acknowledgement(answer.get(..received).unwrap_or_default(), self.sequence) {
                return result;
            }
        }
    }
}

/// What the kernel says to request `sequence`, if `answer` is about it.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let about = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    if kind != NLMSG_ERROR || about != sequence {
        return None;
    }
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    Some(if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) })
}

/// `struct ifinfomsg`.
fn link_header(index: u32, up: u32) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0];
    out.extend(index.to_ne_bytes());
    out.extend(up.to_ne_bytes());
    out.extend(up.to_ne_bytes());
    out
}

/// `struct rtattr`, padded to four bytes.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_answers_understood() {
        let mut out = Vec::new();
        attribute(&mut out, 3, b"lo\0");
        assert_eq!(out, [7, 0, 3, 0, b'l', b'o', 0, 0]);
        let mut answer = vec![0u8; 20];
        answer[4] = 2;
        answer[8] = 9;
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert!(acknowledgement(&answer, 8).is_none() && acknowledgement(&[1, 2], 9).is_none());
        assert_eq!(
            acknowledgement(&answer, 9).map(|r| r.err().and_then(|e| e.raw_os_error())),
            Some(Some(17))
        );
    }
}
