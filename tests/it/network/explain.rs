//! What `--explain` says of networks is what a person can type: typed on a host of its own, it makes the same.

use super::host::*;
use crate::support::eventually;

/// The lines of an explanation that are typed on the host and are of networks.
fn lines(said: &str) -> Vec<String> {
    let of_network = |line: &&str| {
        ["ip ", "nft ", "nsenter --target $BOX --net ip", "echo 1 > /proc/sys/net", "echo 0 > /proc/sys/net"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let lines = said.lines().filter_map(|line| line.strip_prefix("+ ")).filter(of_network);
    lines.map(|line| line.rsplit_once("  # ").map_or(line, |(command, _)| command).to_string()).collect()
}

/// What a network namespace is like, without the numbers of links.
fn described(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.contains("fe80::") && !line.contains("ff00::") && !line.contains("link-netns"))
        .map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()).replace("link-netnsid 0", ""))
        .collect();
    lines.sort();
    lines
}

#[test]
fn typed_it_makes_the_same() {
    for flags in [
        "",
        "-p 8080:80 -p 127.0.0.1:53:53/udp",
        "--network ptp -p 8080:80",
        "--network dual -p 80:80",
        "--network hidden",
    ] {
        let net = Net::new();
        net.ok("network create --ipv6 --subnet fd00:7::/64 dual");
        net.ok("network create --internal hidden");
        let before = net.host.state();
        let told = net.run(&format!("run -d --name a --explain {flags} busybox sleep 100000"));
        assert_eq!(told.status, 0, "{told}");
        let commands = lines(&told.stderr);
        let look = "ip -o link | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/group default.*link/link/; s/state [A-Z]* //; s/mode [A-Z]* //'; \
                    ip -o -4 address | sed 's/^[0-9]*: //'; ip route; ip -6 route | sed 's/ expires [^ ]*//'; \
                    cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
        let rules = |ns: &Namespace| ns.sh("nft list ruleset");
        let enter = |pid: &str, line: &str| crate::support::sh("nsenter", &["-t", pid, "-n", "sh", "-euc", line]);
        let (host, container) = (net.host.sh(look), enter(pid_of(&net).as_str(), look));
        let (host_rules, container_rules) = (rules(&net.host), enter(pid_of(&net).as_str(), "nft list ruleset"));

        // Another host, alike, and somebody who types.
        let (other, outside, container_of_other) = (Namespace::new(), Namespace::new(), Namespace::new());
        other.sh(&format!("ip link add up0 type veth peer name dn0 netns {}", outside.pid()));
        other.sh(&format!(
            "ip address add {HOST}/24 dev up0; ip address add {HOST_SIX}/64 dev up0 nodad; ip link set up0 up"
        ));
        outside.sh("ip link set dn0 up");
        other.sh(&format!("ip route add default via {OUTSIDE}; ip -6 route add default via {OUTSIDE_SIX}"));
        for command in &commands {
            other.sh(&command.replace("$BOX", &container_of_other.pid().to_string()));
        }
        let typed = || (other.sh(look), container_of_other.sh(look));
        let same = |a: &str, b: &str| without_up0(a) == without_up0(b);
        let end = std::time::Instant::now() + SILENCE;
        while std::time::Instant::now() < end && !(same(&typed().0, &host) && same(&typed().1, &container)) {}
        assert_eq!(without_up0(&typed().0), without_up0(&host), "{flags}: {commands:#?}");
        assert_eq!(without_up0(&typed().1), without_up0(&container), "{flags}: {commands:#?}");
        assert_eq!(rules(&other), host_rules, "{flags}");
        assert_eq!(container_rules, "", "there are none inside");

        // Only told, nothing is done, and it says the same of a second container.
        net.ok("rm -f a");
        eventually("it is gone", PATIENCE, || net.host.state() == before);
        let only = net.run(&format!("run --rm --explain=only {flags} busybox sleep 1"));
        assert_eq!(net.host.state(), before);
        let kinds = |commands: &[String]| -> Vec<String> {
            // What the first has turned on stays.
            let again = commands.iter().filter(|command| !command.contains("forward"));
            again.map(|c| c.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect()
        };
        let only = lines(&only.stderr);
        assert!(kinds(&only).starts_with(&kinds(&commands)), "{flags}: {only:#?}\n{commands:#?}");
        assert!(only.last().is_some_and(|line| line.contains("delete")), "and how it goes: {only:#?}");
    }
}

fn pid_of(net: &Net) -> String {
    net.json("inspect a")[0]["State"]["Pid"].to_string()
}

/// Its hardware address is its own on each host.
fn without_up0(text: &str) -> Vec<String> {
    described(text).into_iter().filter(|line| !line.starts_with("up0") && !line.contains("dev up0")).collect()
}
