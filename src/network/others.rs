//! The firewalls of others, which tupper leaves alone: who is in the way of a network, and the command that admits it.

use crate::kernel::netlink::nftables::{Mention, OfOthers, Way};

/// A network that comes into use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// What is of others, by chains.
    pub chains: &'a [OfOthers],
    /// The rules in which its link is: whoever wrote them knows of it.
    pub mentions: &'a [Mention],
    pub link: &'a str,
    /// It has IPv6.
    pub six: bool,
    /// The host answers names in it.
    pub names: bool,
}

/// What to say of the chains that keep packets of the network from going through this host, and its questions for names from the
/// host: docker's and ufw's drop what they do not know; firewalld rejects what is in no zone that lets it through.
pub(super) fn in_the_way(facts: &Facts<'_>) -> Vec<String> {
    let Facts { chains, link, .. } = *facts;
    let has = |table: &str, chain: &str| chains.iter().any(|c| c.table == table && c.chain == chain);
    let mut found: Vec<(String, String)> = Vec::new();
    for chain in chains {
        let Some(way) = chain.drops.filter(|way| *way == Way::Through || facts.names) else { continue };
        if chain.family == "ip6" && !facts.six || facts.mentions.iter().any(|rule| admits(rule, chain, way)) {
            continue;
        }
        let ufw = ["ufw", "ufw6"].iter().any(|ufw| has(&chain.table, &format!("{ufw}-user-forward")));
        let command = command(chain, way, link, has(&chain.table, "DOCKER-USER"), ufw);
        let OfOthers { family, table, chain, .. } = chain;
        let what = match way {
            Way::Through => "",
            Way::In => ", and so questions for names",
        };
        let whose = format!("the firewall's chain {family} {table} {chain} drops what it does not know{what}");
        // ufw has one for both families.
        if found.iter().all(|(_, other)| *other != command) {
            found.push((whose, command));
        }
    }
    let known = facts.mentions.iter().any(|rule| rule.table == "firewalld");
    if has("firewalld", "filter_FORWARD") && !known {
        let whose = "firewalld rejects what is in no zone that lets it through".to_string();
        found.push((whose, format!("firewall-cmd --zone=trusted --add-interface={link}")));
    }
    found.into_iter().map(|(whose, command)| format!("{whose}; to admit this network: {command}")).collect()
}

/// Whether a rule that has the link in it may be one that lets its packets pass that chain.
fn admits(rule: &Mention, chain: &OfOthers, way: Way) -> bool {
    let is_of_in = rule.chain.to_ascii_lowercase().contains("input");
    let fits = rule.chain == chain.chain || is_of_in == (way == Way::In);
    (rule.family, &rule.table) == (chain.family, &chain.table) && fits
}

fn command(chain: &OfOthers, way: Way, link: &str, docker: bool, ufw: bool) -> String {
    let OfOthers { family, table, chain, .. } = chain;
    let iptables = if *family == "ip6" { "ip6tables" } else { "iptables" };
    let both =
        |chain: &str| format!("{iptables} -I {chain} -i {link} -j ACCEPT; {iptables} -I {chain} -o {link} -j ACCEPT");
    match (way, table.as_str(), chain.as_str()) {
        (Way::Through, "filter", "FORWARD") if ufw => {
            format!("ufw route allow in on {link}; ufw route allow out on {link}")
        }
        (Way::Through, "filter", "FORWARD") if docker => both("DOCKER-USER"),
        (Way::Through, "filter", "FORWARD") => both("FORWARD"),
        (Way::In, "filter", "INPUT") if ufw => format!("ufw allow in on {link}"),
        // What a rule of ours has sent to the resolver, and nothing else of the host.
        (Way::In, "filter", "INPUT") => {
            format!("{iptables} -I INPUT -i {link} -m conntrack --ctstate DNAT -j ACCEPT")
        }
        (Way::Through, ..) => {
            let insert = format!("nft insert rule {family} {table} {chain}");
            format!("{insert} iifname {link} accept; {insert} oifname {link} accept")
        }
        (Way::In, ..) => format!("nft insert rule {family} {table} {chain} iifname {link} ct status dnat accept"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: &'static str, table: &str, chain: &str, drops: Option<Way>) -> OfOthers {
        OfOthers { family, table: table.into(), chain: chain.into(), drops }
    }

    fn said(chains: &[OfOthers], mentions: &[Mention]) -> Vec<String> {
        let lines = in_the_way(&Facts { chains, mentions, link: "b", six: true, names: true });
        lines.iter().filter_map(|line| line.split("network: ").nth(1).map(str::to_string)).collect()
    }

    #[test]
    fn each_firewall_has_its_command() {
        let said = |chains: &[OfOthers]| said(chains, &[]);
        let forward = || chain("ip", "filter", "FORWARD", Some(Way::Through));
        let input = || chain("ip", "filter", "INPUT", Some(Way::In));
        assert_eq!(said(&[forward()]), ["iptables -I FORWARD -i b -j ACCEPT; iptables -I FORWARD -o b -j ACCEPT"]);
        assert_eq!(said(&[input()]), ["iptables -I INPUT -i b -m conntrack --ctstate DNAT -j ACCEPT"]);
        let docker = chain("ip", "filter", "DOCKER-USER", None);
        assert_eq!(
            said(&[forward(), docker]),
            ["iptables -I DOCKER-USER -i b -j ACCEPT; iptables -I DOCKER-USER -o b -j ACCEPT"]
        );
        let ufw = |family, name: &str| chain(family, "filter", name, None);
        let six = chain("ip6", "filter", "FORWARD", Some(Way::Through));
        assert_eq!(
            said(&[forward(), six, input(), ufw("ip", "ufw-user-forward"), ufw("ip6", "ufw6-user-forward")]),
            ["ufw route allow in on b; ufw route allow out on b", "ufw allow in on b"]
        );
        let firewalld = chain("inet", "firewalld", "filter_FORWARD", None);
        assert_eq!(said(&[firewalld]), ["firewall-cmd --zone=trusted --add-interface=b"]);
        let own = |drops| chain("inet", "mine", "through", drops);
        let want =
            "nft insert rule inet mine through iifname b accept; nft insert rule inet mine through oifname b accept";
        assert_eq!(said(&[own(Some(Way::Through))]), [want]);
        let want = "nft insert rule inet mine through iifname b ct status dnat accept";
        assert_eq!(said(&[own(Some(Way::In))]), [want]);
        assert_eq!(said(&[own(None)]), [""; 0]);
    }

    #[test]
    fn who_has_admitted_it_is_not_told_again() {
        let ufw = chain("ip", "filter", "ufw-user-forward", None);
        let forward = chain("ip", "filter", "FORWARD", Some(Way::Through));
        let input = chain("ip", "filter", "INPUT", Some(Way::In));
        let mention = |chain: &str| Mention { family: "ip", table: "filter".into(), chain: chain.into() };
        let chains = [ufw, forward, input];
        assert_eq!(said(&chains, &[mention("ufw-user-forward")]), ["ufw allow in on b"]);
        let both = [mention("ufw-user-forward"), mention("ufw-user-input")];
        assert_eq!(said(&chains, &both), [""; 0]);
        let facts = Facts { chains: &chains[2..], mentions: &[], link: "b", six: false, names: false };
        assert_eq!(in_the_way(&facts), [""; 0], "nobody asks for names");
    }
}
