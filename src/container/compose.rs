//! From what an image says and what a person asks to what the sandbox runs.
//!
//! The rules are podman-run(1)'s: `--entrypoint` drops the image's command, arguments replace it, `-e` is over the
//! image's environment, and the image never changes what a container may do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::image::Config;
use serde::{Deserialize, Serialize};

use super::health::HealthOptions;
use crate::error::{Error, Kind, Result};
use crate::name::Id;
use crate::network::{Dns, HostEntry, Mode, Port, Transport};
use crate::sandbox::{
    self, CgroupManager, DeviceRequest, Limits, LogDriver, Restart, Security, Signal, Spec, Tmpfs, Users, Volume,
};

/// The search path of a container whose image sets none (podman's default).
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A limit below this would end every command before it began.
const LEAST_MEMORY: u64 = 1 << 20;

/// What a person asks of a container, beside its source. Empty and `None` mean: as the image says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// What the command is given to, instead of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// `K=V` each.
    pub env: Vec<String>,
    /// The working directory.
    pub workdir: Option<String>,
    /// `name|uid[:group|gid]`.
    pub user: Option<String>,
    /// The host name inside; by default the container's short id.
    pub hostname: Option<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Let it read standard input.
    pub interactive: bool,
    /// Run it below a PID 1 of tupper's that reaps.
    pub init: bool,
    /// Let it write nothing to its root.
    pub read_only: bool,
    /// Places of the host that it sees.
    pub volumes: Vec<Volume>,
    /// Empty filesystems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// What it may use up.
    pub limits: Limits,
    /// Who makes its cgroup.
    pub cgroup_manager: CgroupManager,
    /// Which network it has.
    pub network: Mode,
    /// That of this container, by name or id.
    pub network_of: Option<String>,
    /// Its ports that are reached at ports of the host.
    pub ports: Vec<Port>,
    /// So are all that the image exposes, at ports that are free.
    pub publish_all: bool,
    /// Who it asks for names.
    pub dns: Dns,
    /// More lines of its /etc/hosts.
    pub hosts: Vec<HostEntry>,
    /// Which users and groups of the host are behind those inside.
    pub users: Users,
    /// What it may do.
    pub security: Security,
    /// Whether it is started again when it has ended.
    pub restart: Restart,
    /// What becomes of its output.
    pub log: LogDriver,
    /// What asks it to end.
    pub stop_signal: Option<Signal>,
    /// The seconds that it then has before it is killed.
    pub stop_timeout: Option<u32>,
    /// The size of its /dev/shm in bytes; 0 for no limit.
    pub shm_size: Option<u64>,
    /// Devices of the host that it may use.
    pub devices: Vec<DeviceRequest>,
    /// What people note of it, over what the image says.
    pub labels: BTreeMap<String, String>,
    /// What tells whether it is well, over what the image says.
    pub health: HealthOptions,
    /// What becomes of the volumes that the image declares.
    pub image_volumes: ImageVolumes,
}

/// podman-run(1), `--image-volume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVolumes {
    /// Each is a volume that nobody named.
    #[default]
    Anonymous,
    /// Each is an empty filesystem in memory.
    Tmpfs,
    /// They are directories like others.
    Ignore,
}

/// The sandbox's spec. `term` is the kind of the caller's terminal.
pub(super) fn compose(options: &Options, image: Option<&Config>, id: &Id, term: Option<&str>) -> Result<Spec> {
    let hostname = options.hostname.clone().unwrap_or_else(|| id.short());
    let mut env = Environment::default();
    env.set(PATH);
    env.set("container=tupper");
    env.set(&format!("HOSTNAME={hostname}"));
    if options.tty {
        env.set(&format!("TERM={}", term.unwrap_or("xterm")));
    }
    let from_image = image.and_then(|config| config.env().as_deref()).unwrap_or_default();
    from_image.iter().chain(&options.env).for_each(|variable| env.set(variable));
    let cwd = non_empty(options.workdir.as_deref()).or(non_empty(image.and_then(|c| c.working_dir().as_deref())));
    let cwd = PathBuf::from(cwd.unwrap_or("/"));
    if !cwd.is_absolute() {
        return Err(Error::new(Kind::Invalid, format!("working directory {}: not absolute", cwd.display())));
    }
    check_memory(&options.limits)?;
    let (mut volumes, mut tmpfs) = (options.volumes.clone(), options.tmpfs.clone());
    let mut taken: HashSet<PathBuf> = volumes.iter().map(|v| v.destination.clone()).collect();
    taken.extend(tmpfs.iter().map(|t| t.destination.clone()));
    for path in declared_volumes(image) {
        match options.image_volumes {
            _ if !taken.insert(path.clone()) => {}
            ImageVolumes::Anonymous => volumes.push(Volume { anonymous: true, ..Volume::new("", path) }),
            ImageVolumes::Tmpfs => tmpfs.push(Tmpfs { destination: path, options: String::new() }),
            ImageVolumes::Ignore => {}
        }
    }
    if options.read_only {
        // podman-run(1), --read-only-tmpfs: what every program expects to be able to write to.
        let taken =
            |path: &Path| tmpfs.iter().any(|t| t.destination == path) || volumes.iter().any(|v| v.destination == path);
        let missing: Vec<&str> =
            ["/run", "/tmp", "/var/tmp"].into_iter().filter(|path| !taken(Path::new(path))).collect();
        tmpfs.extend(missing.into_iter().map(|path| Tmpfs { destination: path.into(), options: "exec".to_string() }));
    }
    Ok(Spec {
        hostname,
        args: args(options, image)?,
        env: env.into(),
        cwd,
        user: non_empty(options.user.as_deref())
            .or(non_empty(image.and_then(|c| c.user().as_deref())))
            .map(str::to_string),
        tty: options.tty,
        interactive: options.interactive,
        init: options.init,
        read_only: options.read_only,
        volumes,
        tmpfs,
        limits: options.limits.clone(),
        cgroup_manager: options.cgroup_manager,
        network: options.network.clone(),
        ports: ports(options, image)?,
        dns: options.dns.clone(),
        hosts: options.hosts.clone(),
        users: options.users.clone(),
        security: options.security.clone(),
        restart: options.restart,
        log: options.log,
        stop_signal: stop_signal(options, image)?,
        stop_timeout: options.stop_timeout,
        shm_size: options.shm_size,
        devices: options.devices.clone(),
        labels: labels(options, image),
        health: None,
    })
}

/// The directories that an image declares as volumes, without what no volume can be: it says what it needs, and does not
/// choose what a container may do.
fn declared_volumes(image: Option<&Config>) -> Vec<PathBuf> {
    let declared = image.and_then(|config| config.volumes().as_deref()).unwrap_or_default();
    let mut paths: Vec<PathBuf> = declared.iter().map(PathBuf::from).collect();
    paths.retain(|path| {
        let fits = sandbox::is_place_for_volume(path);
        if !fits {
            log::warn!("the image declares a volume at {}, where none can be", path.display());
        }
        fits
    });
    paths.sort();
    paths
}

/// The ports to publish: those that a person names, and where that is wanted those that the image exposes.
fn ports(options: &Options, image: Option<&Config>) -> Result<Vec<Port>> {
    let mut ports = options.ports.clone();
    if options.publish_all {
        let exposed = image.and_then(|config| config.exposed_ports().as_deref()).unwrap_or_default();
        for text in exposed {
            let (first, count, transport) = exposed_port(text)
                .ok_or_else(|| Error::new(Kind::Invalid, format!("the image exposes the port {text:?}: not a port")))?;
            let named = |port: &Port| {
                port.transport == transport && first >= port.container && first - port.container < port.count
            };
            if !ports.iter().any(named) {
                ports.push(Port { address: None, host: 0, container: first, count, transport });
            }
        }
    }
    if !ports.is_empty() && options.network.joined().is_none() {
        // podman says so, too: "Port mappings have been discarded".
        log::warn!("published ports do nothing with --network none, host and container");
        ports.clear();
    }
    Ok(ports)
}

/// `80`, `80/udp` or `8000-8010/tcp`: OCI image-spec config.md, ExposedPorts.
fn exposed_port(text: &str) -> Option<(u16, u16, Transport)> {
    let (range, transport) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let more = last.checked_sub(first).filter(|_| first > 0)?;
    Some((first, more + 1, transport.parse().ok()?))
}

fn stop_signal(options: &Options, image: Option<&Config>) -> Result<Option<Signal>> {
    let of_image = || non_empty(image.and_then(|config| config.stop_signal().as_deref())).map(str::parse).transpose();
    match options.stop_signal {
        Some(signal) => Ok(Some(signal)),
        None => {
            of_image().map_err(|e: Error| e.wrap("the image's stop signal").with_hint("--stop-signal says another"))
        }
    }
}

fn labels(options: &Options, image: Option<&Config>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = image
        .and_then(|config| config.labels().as_ref())
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    labels.extend(options.labels.clone());
    labels
}

/// A limit under which no command could start.
pub(super) fn check_memory(limits: &Limits) -> Result<()> {
    match limits.memory.filter(|memory| *memory < LEAST_MEMORY) {
        Some(memory) => {
            Err(Error::new(Kind::Invalid, format!("memory limit {memory}: less than 1 MiB, nothing could start")))
        }
        None => Ok(()),
    }
}

fn args(options: &Options, image: Option<&Config>) -> Result<Vec<String>> {
    let of_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let entrypoint =
        options.entrypoint.clone().or(image.map(|config| of_image(config.entrypoint()))).unwrap_or_default();
    let command = match (options.args.is_empty(), &options.entrypoint) {
        (false, _) => options.args.clone(),
        (true, Some(_)) => Vec::new(),
        (true, None) => image.map(|config| of_image(config.cmd())).unwrap_or_default(),
    };
    let args = [entrypoint, command].concat();
    if args.first().is_none_or(String::is_empty) {
        let error = Error::new(Kind::Invalid, "no command given, and the image has none");
        return Err(error.with_hint("give one after the image, or import the image with --change 'CMD [\"sh\"]'"));
    }
    Ok(args)
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Variables in the order in which they were first set.
#[derive(Default)]
pub(super) struct Environment {
    variables: Vec<String>,
    /// Where each is: an image's config has room for half a million.
    places: HashMap<String, usize>,
}

impl From<Environment> for Vec<String> {
    fn from(environment: Environment) -> Vec<String> {
        environment.variables
    }
}

impl Environment {
    pub(super) fn of(variables: Vec<String>) -> Environment {
        let mut environment = Environment::default();
        variables.iter().for_each(|variable| environment.set(variable));
        environment
    }

    /// What a variable is called.
    pub(super) fn key(variable: &str) -> &str {
        variable.split('=').next().unwrap_or_default()
    }

    pub(super) fn set(&mut self, variable: &str) {
        let key = Self::key(variable);
        match self.places.get(key) {
            Some(place) => self.variables[*place] = variable.to_string(),
            None => {
                self.places.insert(key.to_string(), self.variables.len());
                self.variables.push(variable.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NetworkName;
    use crate::network::Join;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Config {
        let mut config = Config::default();
        config.set_entrypoint(Some(strings(entrypoint))).set_cmd(Some(strings(cmd)));
        config
    }

    #[test]
    fn entrypoint_and_command_as_in_podman() {
        type Words<'a> = &'a [&'a str];
        let rows: [(Words<'_>, Words<'_>, Option<Words<'_>>, Words<'_>, Words<'_>); 6] = [
            (&[], &["sh"], None, &[], &["sh"]),
            (&[], &["sh"], None, &["ls", "/"], &["ls", "/"]),
            (&["init"], &["sh"], None, &[], &["init", "sh"]),
            (&["init"], &["sh"], None, &["ls"], &["init", "ls"]),
            (&["init"], &["sh"], Some(&["other"]), &[], &["other"]),
            (&["init"], &["sh"], Some(&["other"]), &["x"], &["other", "x"]),
        ];
        for (entrypoint, cmd, asked, given, want) in rows {
            let options = Options { args: strings(given), entrypoint: asked.map(strings), ..Options::default() };
            assert_eq!(args(&options, Some(&image(entrypoint, cmd))).expect("a command"), strings(want));
        }
        assert!(args(&Options::default(), None).is_err());
        assert!(args(&Options { entrypoint: Some(strings(&[""])), ..Options::default() }, None).is_err());
    }

    #[test]
    fn the_environment_is_the_image_s_under_the_person_s() {
        let mut config = image(&[], &["sh"]);
        config.set_env(Some(strings(&["PATH=/image", "A=image"]))).set_working_dir(Some("/srv".to_string()));
        let options = Options { env: strings(&["A=person", "B=1"]), tty: true, ..Options::default() };
        let id = Id::from_bytes([0xab; 32]);
        let spec = compose(&options, Some(&config), &id, Some("screen")).expect("composes");
        let want = ["PATH=/image", "container=tupper", "HOSTNAME=abababababab", "TERM=screen", "A=person", "B=1"];
        assert_eq!(spec.env, strings(&want));
        assert_eq!((spec.cwd, spec.hostname.as_str()), (PathBuf::from("/srv"), "abababababab"));
        let relative = Options { workdir: Some("srv".into()), ..Options::default() };
        assert!(compose(&relative, Some(&config), &id, None).is_err());
    }

    #[test]
    fn exposed_ports_reach_to_the_last() {
        let mut config = image(&[], &["sh"]);
        config.set_exposed_ports(Some(strings(&["65535", "65534-65535/udp", "1-65535", "65535/tcp"])));
        let network = Mode::Joined(Join::new(NetworkName::bridge()));
        let options = Options { publish_all: true, network, ..Options::default() };
        let found = ports(&options, Some(&config)).expect("ports");
        let found: Vec<_> = found.iter().map(|port| (port.container, port.count, port.transport)).collect();
        assert_eq!(found, [(65535, 1, Transport::Tcp), (65534, 2, Transport::Udp), (1, 65535, Transport::Tcp)]);
        for text in ["0", "0-65535", "81-80", "80/x", "-", "65536"] {
            assert_eq!(exposed_port(text), None, "{text}");
        }
    }

    /// A config may have 4 MiB.
    #[test]
    fn so_many_variables_and_volumes_take_a_moment() {
        let mut config = image(&[], &["sh"]);
        let many = |prefix: &str| (0..60_000).map(|n| format!("{prefix}{n}=x")).collect::<Vec<_>>();
        config.set_env(Some(many("V"))).set_volumes(Some(many("/v")));
        let start = std::time::Instant::now();
        let spec = compose(&Options::default(), Some(&config), &Id::from_bytes([1; 32]), None).expect("composes");
        assert_eq!((spec.env.len(), spec.volumes.len()), (60_003, 60_000));
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
