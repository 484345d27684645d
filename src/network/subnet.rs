//! Arithmetic on nets and addresses: which net a network gets, and which address a container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::name::Digest;

/// Where nets are taken from: 10.64.0.0/12, which docker (172.17 and up, 192.168), podman (10.88 and up), libvirt
/// (192.168.122), Kubernetes' usual nets (10.96, 10.244) and k3s (10.42) leave alone.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 64, 0, 0), 12);

/// How large the nets are of the networks that there always are.
pub(super) const LARGE: u8 = 16;

/// How large the others are.
pub(super) const USUAL: u8 = 24;

/// A free net of this size: the first that overlaps with none of `taken`. Large ones come from below, others from above, so
/// that neither is in the way of the other.
pub(super) fn free(prefix: u8, taken: &[IpNet]) -> Option<Ipv4Net> {
    let fits = |net: &Ipv4Net| taken.iter().all(|other| !overlap(&IpNet::V4(*net), other));
    if prefix <= LARGE {
        return POOL.subnets(prefix).ok()?.find(fits);
    }
    let (_, upper) =
        POOL.subnets(POOL.prefix_len() + 1).ok().and_then(|mut halves| halves.next().zip(halves.next()))?;
    upper.subnets(prefix).ok()?.find(fits)
}

/// Whether two nets have an address in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A unique local net (RFC 4193): what is made of `seed` is no more than 40 random bits, and the same each time.
pub(super) fn local(seed: &str, taken: &[IpNet]) -> Ipv6Net {
    let mut turn = 0;
    loop {
        let digest = Digest::of(format!("{seed}/{turn}").as_bytes()).id().to_string();
        let bits = u64::from_str_radix(digest.get(..14).unwrap_or_default(), 16).unwrap_or_default();
        let net = Ipv6Net::new_assert(Ipv6Addr::from((0xfd << 56 | u128::from(bits)) << 64), 64);
        if turn == 16 || taken.iter().all(|other| !overlap(&IpNet::V6(net), other)) {
            return net;
        }
        turn += 1;
    }
}

/// The address with this number in a net; the net's own is 0.
pub(super) fn nth(net: IpNet, number: u32) -> IpAddr {
    match net {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).wrapping_add(number))),
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()).wrapping_add(number.into()))),
    }
}

/// The numbers of a net's addresses that can be given out: all but the net's own and the one for everybody (RFC 919).
pub(super) fn numbers(net: IpNet) -> std::ops::Range<u32> {
    let bits = net.max_prefix_len() - net.prefix_len();
    let size = 1u32.checked_shl(bits.into()).unwrap_or(u32::MAX);
    1..size.saturating_sub(u32::from(net.addr().is_ipv4())).max(1)
}

/// Whether somebody can have the address in this net.
pub(super) fn is_usable(net: IpNet, address: IpAddr) -> bool {
    let everybody = net.addr().is_ipv4() && address == net.broadcast();
    net.contains(&address) && address != net.network() && !everybody
}

/// A free address, the next after the one that was given out last: who has just left may still be known to others.
pub(super) fn next(net: IpNet, after: u32, taken: impl Fn(IpAddr) -> bool) -> Option<u32> {
    let all = numbers(net);
    let start = if all.contains(&(after.saturating_add(1))) { after + 1 } else { all.start };
    // Among n + 1 addresses is one that n others do not have.
    (start..all.end).chain(all.start..start).find(|number| !taken(nth(net, *number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect(text)
    }

    #[test]
    fn a_net_is_free_of_what_the_host_has() {
        let free = |prefix, taken: &[&str]| {
            let taken: Vec<IpNet> = taken.iter().map(|t| net(t)).collect();
            free(prefix, &taken).map(|net| net.to_string())
        };
        assert_eq!(free(LARGE, &[]).as_deref(), Some("10.64.0.0/16"));
        assert_eq!(free(LARGE, &["10.64.3.0/24", "10.65.0.1/32", "fd00::/8"]).as_deref(), Some("10.66.0.0/16"));
        assert_eq!(free(USUAL, &[]).as_deref(), Some("10.72.0.0/24"));
        assert_eq!(free(USUAL, &["10.72.0.0/23", "192.168.0.0/16"]).as_deref(), Some("10.72.2.0/24"));
        assert_eq!(free(USUAL, &["10.0.0.0/8"]), None);
        assert_eq!(free(LARGE, &["10.64.0.0/12"]), None);
    }

    #[test]
    fn local_nets_are_unique_and_stay() {
        let first = local("store/a", &[]);
        assert_eq!(first, local("store/a", &[]));
        assert_ne!(first, local("store/b", &[]));
        assert_ne!(first, local("store/a", &[IpNet::V6(first)]));
        assert!(first.to_string().starts_with("fd") && first.prefix_len() == 64);
    }

    #[test]
    fn addresses_go_round() {
        let small = net("10.72.0.0/29");
        let next =
            |after, taken: &[u8]| next(small, after, |a| taken.iter().any(|t| a == IpAddr::from([10, 72, 0, *t])));
        assert_eq!(next(0, &[1]), Some(2));
        assert_eq!(next(2, &[1]), Some(3));
        assert_eq!(next(6, &[1]), Some(2));
        assert_eq!(next(4, &[1, 5, 6]), Some(2));
        assert_eq!(next(4, &[1, 2, 3, 4, 5, 6]), None);
        assert_eq!(nth(net("fd00:1::/64"), 0x12).to_string(), "fd00:1::12");
        let usable = |text: &str, address: &str| is_usable(net(text), address.parse().expect("an address"));
        assert!(usable("10.72.0.0/29", "10.72.0.6") && usable("fd00:1::/64", "fd00:1::ffff:ffff:ffff:ffff"));
        for wrong in ["10.72.0.0", "10.72.0.7", "10.72.0.8", "fd00::1"] {
            assert!(!usable("10.72.0.0/29", wrong), "{wrong}");
        }
        assert_eq!(numbers(net("10.0.0.0/30")), 1..3);
        assert_eq!(numbers(net("fd00::/64")), 1..u32::MAX);
    }
}
