//! The steps of a plan as a person would type them, with util-linux, iproute2 and a shell.
//!
//! There are two shells, and the lines read as one story. The *host's* is where a person begins, as root. The *inner* one
//! begins there too, with the line that ends in `unshare … sh`, and each line of it that ends in `sh` goes one shell
//! deeper. From the line on that attaches the root, the inner shell's working directory is the root, and paths of the
//! sandbox are typed relative to it; from pivot_root on they are absolute. `$BOX` is the inner shell as the host sees it.
//!
//! What needs the host's privileges after the user namespace is made is typed in the host's shell, into the inner one's
//! mount namespace: `nsenter --target $BOX --mount …`. The root lies at /mnt there: at its own place below the store,
//! where nobody but the host's root has access, the root inside could not enter it.
//!
//! A test types all of it and compares what comes of it with a sandbox (`tests/it/explain.rs`).

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::facts::Device;
use super::scope::Scope;
use super::step::{Attributes, CapabilitySet, Side, Step, named_capabilities};
use super::users::text;

/// Which of the two shells a line is typed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// The host's.
    Host,
    /// The one in the namespaces.
    Inner,
}

/// Where the root is in the inner shell's mount namespace until it is `/`.
const PLACE: &str = "/mnt";

/// What a bind mount has that hides a place or makes it read-only: what the filesystem's own mount has, and `ro`.
const SEALED: Attributes = Attributes { read_only: true, nosuid: true, nodev: true, noexec: true };

/// In the inner shell's mount namespace, from the host's shell.
const FROM_HOST: &str = "nsenter --target $BOX --mount";

impl Step {
    /// The shell that its [command](Step::command) is typed in.
    pub fn shell(&self) -> Shell {
        match self {
            Step::Clone { .. } => Shell::Inner,
            Step::AwaitRoot | Step::AttachTree { by_host: true, .. } => Shell::Host,
            step if step.side() == Side::Child => Shell::Inner,
            _ => Shell::Host,
        }
    }

    /// The shell command that a person would type for it; a comment where there is nothing to type.
    pub fn command(&self) -> String {
        match self {
            Step::EnableControllers { directory, controllers } => {
                let plus: Vec<String> = controllers.iter().map(|c| format!("+{c}")).collect();
                let directory = quote(directory);
                format!("mkdir -p {directory} && echo '{}' > {directory}/cgroup.subtree_control", plus.join(" "))
            }
            Step::MakeCgroup { directory } => format!("mkdir -p {}", quote(directory)),
            Step::InheritCpuset { directory } => {
                let directory = quote(directory);
                format!(
                    "mkdir -p {directory} && for f in cpus mems; do grep -q . {directory}/cpuset.$f || \
                     cat {directory}/../cpuset.$f > {directory}/cpuset.$f; done"
                )
            }
            Step::SetLimit { file, value, instead, .. } => {
                let echo = |file: &Path, value: &str| format!("echo {} > {}", quote(value), quote(file));
                let instead = instead.as_ref().map(|(file, value)| format!(" || {}", echo(file, value)));
                echo(file, value) + &instead.unwrap_or_default()
            }
            // bpftool(8) can attach such a program, and nothing that Debian has can make it.
            Step::RestrictDevices { rules, .. } => {
                let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                format!("# a BPF program that allows: {}", rules.join(", "))
            }
            Step::StartScope(scope) => start_scope(scope),
            Step::AttachCgroup { directory, destination, attributes } => {
                let place = inside(destination);
                format!("{} && {}", make(&place, true), bind(directory, &place, false, false, *attributes))
            }
            Step::CloneTree { .. } | Step::MapTree { .. } => "# mounted where it is attached".into(),
            Step::ShareUsers { .. } => "# they are".into(),
            Step::OwnStreams { uid } => format!("chown --dereference {uid} /proc/self/fd/[012]"),
            Step::Clone { users, network, beside, cgroup } => {
                let enter = beside.map(|(pid, users)| {
                    // Ids of the namespace are those of its root, as which everything is made.
                    let users = if users { " --user" } else { "" };
                    format!("nsenter --target {pid}{users} --net --preserve-credentials --keep-caps ")
                });
                let enter = enter.unwrap_or_default();
                // What execve(2) leaves to a user who is not mapped yet is what is ambient: capabilities(7).
                let users = if *users { " --user --keep-caps" } else { "" };
                let network = if *network { " --net" } else { "" };
                let join = cgroup.as_ref().map(|c| format!("echo $$ > {}/cgroup.procs && ", quote(c)));
                let join = join.unwrap_or_default();
                format!("{join}{enter}unshare{users} --mount --pid --fork --kill-child --uts --ipc{network} sh")
            }
            Step::Attach { directory } => format!("echo 0 > {}/tasks", quote(directory)),
            Step::DieWithParent => "setpriv --pdeathsig KILL sh".into(),
            Step::NewSession => "setsid --wait sh".into(),
            Step::SetUmask(mask) => format!("umask {mask:04o}"),
            Step::SetHostname(name) => format!("hostname {}", quote(name)),
            Step::UnshareNetwork => "unshare --net sh".into(),
            Step::LoopbackUp => "ip link set lo up".into(),
            Step::AwaitRoot => "BOX=$(pgrep --parent $(pgrep --newest --exact unshare))".into(),
            Step::WriteIdMaps(maps) => {
                let [uids, gids] = [&maps.uids, &maps.gids].map(|maps| text(maps).replace('\n', "\\n"));
                format!("printf '{uids}\\n' > /proc/$BOX/uid_map && printf '{gids}\\n' > /proc/$BOX/gid_map")
            }
            Step::CloneRoot { path, attributes, mapped } => {
                format!("{FROM_HOST} {}", bind_root(path, *mapped, *attributes))
            }
            Step::MakeFilesystem { kind, destination, options, attributes, mapped } => {
                let place = below(destination);
                let mount = mount(kind, &place, options, *attributes).replace(" && ", &format!(" && {FROM_HOST} "));
                format!("{} && {FROM_HOST} {mount}", as_inner(*mapped, &format!("mkdir -p {place}")))
            }
            Step::MakeDevice { device: Device { name, block, major, minor, mode }, owner: (uid, gid) } => {
                let path = Path::new("/dev").join(name);
                let node = below(&path);
                let nested = path.parent().filter(|above| *above != Path::new("/dev"));
                let above = nested.map_or(String::new(), |above| format!("mkdir -p {} && ", below(above)));
                let kind = if *block { 'b' } else { 'c' };
                let owner = if *uid == 0 { String::new() } else { format!(" && chown {uid}:{gid} {node}") };
                let make = format!("{above}mknod -m {mode:04o} {node} {kind} {major} {minor}{owner}");
                format!("{FROM_HOST} sh -c {}", quote(make))
            }
            Step::LoadProfile { .. } => "# apparmor_parser -Kr, and the profile on standard input".into(),
            Step::Confine { profile } => format!("# aa-exec -p {} --", quote(profile)),
            Step::BecomeRoot => "setpriv --reuid 0 --regid 0 --clear-groups sh".into(),
            Step::MakePrivate => "mount --make-rprivate /".into(),
            Step::AttachRoot { .. } => format!("cd {PLACE}"),
            Step::AttachFilesystem { .. } => "# it is there".into(),
            Step::Mount { kind, destination, options, attributes } => {
                format!(
                    "{} && {}",
                    make(&inside(destination), true),
                    mount(kind, &inside(destination), options, *attributes)
                )
            }
            Step::SetParameter { name, value } => format!("echo {} > proc/sys/{name}", quote(value)),
            Step::MakeLink { name, target } => format!("ln -s {target} dev/{name}"),
            Step::OpenTerminal { console: false, .. } => "# script(1) opens one".into(),
            Step::CloneInside { pid, .. } => format!("nsenter --target {pid} --pid"),
            Step::Hide => "# prctl(2), PR_SET_DUMPABLE".into(),
            Step::LimitSelf(limit) => limit.command(),
            Step::Join { pid, namespaces } => {
                // nsenter(1) calls it --mount.
                let flags: Vec<String> =
                    namespaces.iter().map(|name| format!(" --{}", name.replace("mnt", "mount"))).collect();
                format!("nsenter --target {pid}{} --wd=/ --root=/ sh", flags.concat())
            }
            Step::CloseOutput => "exec > /dev/null 2>&1".into(),
            Step::OpenTerminal { .. } => "touch dev/console && mount --bind dev/pts/0 dev/console".into(),
            Step::MakePrivateFiles { directories, files } => {
                let directories: String = directories.iter().map(|d| format!(" /dev/{d}")).collect();
                let files: String =
                    files.iter().map(|(name, bytes)| format!(" && {} > /dev/{name}", print(bytes))).collect();
                format!("mount -t tmpfs -o nosuid,nodev,noexec,mode=0755 tmpfs /dev && mkdir -p{directories}{files}")
            }
            Step::BindPrivate { name, destination, attributes, directory } => {
                let (source, place) = (PathBuf::from(format!("/dev/{name}")), inside(destination));
                format!("{} && {}", make(&place, *directory), bind(&source, &place, false, false, *attributes))
            }
            Step::AttachTree { source, destination, attributes, mapped, by_host: true, directory, .. } => {
                let place = below(destination);
                let bind = bind(source, &place, true, *mapped, *attributes);
                format!("{} && {FROM_HOST} {bind}", as_inner(true, &make(&place, *directory)))
            }
            Step::AttachTree { source, destination, attributes, directory, .. } => {
                let place = inside(destination);
                format!("{} && {}", make(&place, *directory), bind(source, &place, true, false, *attributes))
            }
            Step::MountTmpfs { destination, options, attributes } => {
                let place = inside(destination);
                format!("{} && {}", make(&place, true), mount("tmpfs", &place, options, *attributes))
            }
            Step::Mask { path, directory: true } => bind(Path::new("/dev/empty"), &inside(path), false, false, SEALED),
            Step::Mask { path, directory: false } => format!("mount --bind dev/null {}", inside(path)),
            Step::MakeReadOnly { path } => bind(Path::new(&inside(path)), &inside(path), false, false, SEALED),
            Step::MakeDirectory(path) => format!("mkdir -p {}", inside(path)),
            Step::SealRoot => "mount -o remount,bind,ro .".into(),
            Step::UnshareCgroup => "unshare --cgroup sh".into(),
            Step::JoinKeyring => "keyctl session - sh".into(),
            Step::PivotRoot => "pivot_root . .".into(),
            Step::DetachOldRoot => "umount --lazy . && cd /".into(),
            Step::ForbidCoreFiles => "ulimit -c 0".into(),
            Step::SetIdentity { bounding, uid, gid, groups } => {
                let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                let groups =
                    if groups.is_empty() { "--clear-groups".into() } else { format!("--groups {}", groups.join(",")) };
                format!("setpriv --bounding-set {} --reuid {uid} --regid {gid} {groups} sh", only(*bounding))
            }
            // What root keeps of the permitted set at exec is the bounding set, and another user nothing: capabilities(7).
            Step::SetCapabilities(_) => "setpriv --inh-caps -all --ambient-caps -all sh".into(),
            // There is no program that loads one and goes on as a shell.
            Step::FilterCalls(_) => "# no command loads a filter of system calls".into(),
            Step::SetResourceLimit(limit) => limit.command(),
            Step::ForbidNewPrivileges => "setpriv --no-new-privs sh".into(),
            // A shell that waits for its child reaps what is orphaned, too.
            Step::ForkInit => "sh".into(),
            Step::TakeTerminal => "setsid --ctty --wait sh <> /dev/console >&0 2>&0".into(),
            // A shell would read its next line from there: the last line has it.
            Step::CloseInput => "# with < /dev/null at the end".into(),
            Step::ResetSignals => "trap - HUP INT QUIT PIPE TERM".into(),
            Step::ChangeDirectory(path) => format!("cd {}", quote(path)),
            Step::CloseDescriptors => "exec 3>&-  # and every higher one".into(),
            Step::Exec { args, env, without_input } => {
                let words = ["exec", "env", "-i"].into_iter().map(str::to_string);
                let words: Vec<String> = words.chain(env.iter().chain(args).map(quote)).collect();
                words.join(" ") + if *without_input { " < /dev/null" } else { "" }
            }
        }
    }
}

impl Step {
    /// What undoes it on the host at the end, in words and as a command, if something of it stays until then.
    pub(super) fn undo(&self) -> Option<(String, String)> {
        match self {
            Step::MakeCgroup { directory } => {
                let directory = quote(directory);
                Some((format!("remove the cgroup {directory}"), format!("rmdir {directory}")))
            }
            _ => None,
        }
    }
}

/// busctl(1), which does not wait for the scope to be there: it is when the cgroup is.
fn start_scope(scope: &Scope) -> String {
    let properties: String = scope.properties.iter().map(|p| format!(" {} {}", p.name, p.value.words())).collect();
    let devices = scope.devices.as_ref().map(|rules| {
        let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
        format!("  # and a BPF program that allows: {}", rules.join(", "))
    });
    format!(
        "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager \
         StartTransientUnit 'ssa(sv)a(sa(sv))' {} fail {} PIDs au 1 $BOX{properties} 0 && \
         until [ -d {} ]; do sleep 0.1; done{}",
        quote(&scope.unit),
        scope.properties.len() + 1,
        quote(&scope.directory),
        devices.unwrap_or_default()
    )
}

/// Makes a mount point that may be missing; `place` is a word.
fn make(place: &str, directory: bool) -> String {
    if directory { format!("mkdir -p {place}") } else { format!("{{ [ -e {place} ] || touch {place}; }}") }
}

/// In the inner shell's mount namespace, from the host's shell, as root inside: through an id-mapped mount nobody makes
/// files who is not mapped (mount_setattr(2), EOVERFLOW).
fn as_inner(mapped: bool, command: &str) -> String {
    format!("{FROM_HOST}{} sh -c {}", if mapped { " --user" } else { "" }, quote(command))
}

fn mount(kind: &str, destination: &str, options: &[String], attributes: Attributes) -> String {
    // The mount is to be read-only, and not the filesystem behind it.
    let mut all = flags(Attributes { read_only: false, ..attributes });
    all.extend(options.iter().cloned());
    let options = if all.is_empty() { String::new() } else { format!(" -o {}", quote(all.join(","))) };
    let mount = format!("mount -t {kind}{options} {kind} {destination}");
    match attributes.read_only {
        true => format!("{mount} && mount -o remount,bind,{} {destination}", flags(attributes).join(",")),
        false => mount,
    }
}

fn bind(source: &Path, destination: &str, recursive: bool, mapped: bool, attributes: Attributes) -> String {
    let mut all = flags(attributes);
    if mapped {
        all.push("X-mount.idmap=/proc/$BOX/ns/user".to_string()); // mount(8), since util-linux 2.39
    }
    let options = if all.is_empty() { String::new() } else { format!(" -o {}", all.join(",")) };
    format!("mount --{}bind{options} {} {destination}", if recursive { "r" } else { "" }, quote(source))
}

/// The bind mount of the root, which may do what the store's own mount may not.
fn bind_root(path: &Path, mapped: bool, attributes: Attributes) -> String {
    let allowed: String = [(attributes.nosuid, ",suid"), (attributes.nodev, ",dev")]
        .iter()
        .filter(|(forbidden, _)| !forbidden)
        .map(|(_, word)| *word)
        .collect();
    let typed = bind(path, PLACE, false, mapped, attributes);
    match (allowed.as_str(), typed.contains(" -o ")) {
        ("", _) => typed,
        (allowed, true) => typed.replacen(" -o ", &format!(" -o {},", allowed.trim_start_matches(',')), 1),
        (allowed, false) => typed.replacen("bind ", &format!("bind -o {} ", allowed.trim_start_matches(',')), 1),
    }
}

fn flags(attributes: Attributes) -> Vec<String> {
    let all = [
        (attributes.read_only, "ro"),
        (attributes.nosuid, "nosuid"),
        (attributes.nodev, "nodev"),
        (attributes.noexec, "noexec"),
    ];
    all.iter().filter(|(set, _)| *set).map(|(_, name)| name.to_string()).collect()
}

/// A path of the sandbox as seen from its root before it is `/`.
fn inside(path: &Path) -> String {
    quote(path.strip_prefix("/").unwrap_or(path))
}

/// A path of the sandbox in the inner shell's mount namespace before that.
fn below(path: &Path) -> String {
    quote(Path::new(PLACE).join(path.strip_prefix("/").unwrap_or(path)))
}

/// These capabilities and no other, as setpriv(1) reads them.
fn only(set: CapabilitySet) -> String {
    let mut words = vec!["-all".to_string()];
    words.extend(named_capabilities(set).map(|name| format!("+{name}")));
    words.join(",")
}

/// What prints these bytes: printf(1).
fn print(bytes: &[u8]) -> String {
    let mut format = String::from("printf '");
    for byte in bytes {
        match byte {
            b'\n' => format.push_str("\\n"),
            b'\t' => format.push_str("\\t"),
            b'%' => format.push_str("%%"),
            b'\'' | b'\\' | 0..0x20 | 0x7f.. => write!(format, "\\{byte:03o}").unwrap_or_default(),
            byte => format.push(char::from(*byte)),
        }
    }
    format.push('\'');
    format
}

/// A word for a POSIX shell: as it is, or quoted; a step is one line, whatever an argument holds.
pub(crate) fn quote(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    match word.chars().any(char::is_control) {
        false => format!("'{}'", word.replace('\'', "'\\''")),
        // A command substitution loses newlines at the end; this form is in POSIX since 2024, and dash lacks it.
        true if word.ends_with('\n') => format!("$'{}'", word.escape_debug()),
        true => format!("\"$({})\"", print(word.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let cases = [
            ("plain-1.0/x", "plain-1.0/x"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("$(x)", "'$(x)'"),
            ("a\nb'", r#""$(printf 'a\nb\047')""#),
            ("a\n", r"$'a\n'"),
        ];
        for (word, expected) in cases {
            assert_eq!(quote(word), expected);
        }
    }

    #[test]
    fn bytes_are_printed_as_they_are() {
        assert_eq!(print(b"127.0.0.1\tbox\n50% 'of\\'"), r"printf '127.0.0.1\tbox\n50%% \047of\134\047'");
    }
}
