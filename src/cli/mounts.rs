//! Volumes and mounts of run and create: podman-run(1), `--volume`, `--mount`, `--tmpfs`, `--image-volume`.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use tupper::container::ImageVolumes;
use tupper::name::VolumeName;
use tupper::sandbox::{Tmpfs, Volume};

use super::run::bytes;

#[derive(Debug, Default, Args)]
pub(super) struct Mounts {
    /// Show a directory or file of the host inside, or a volume, which is made if there is none of that name; DST alone: a
    /// new volume that goes with the container
    #[arg(long, short, value_name = "[SRC|NAME:]DST[:ro,noidmap,nocopy]", value_parser = volume)]
    volume: Vec<Volume>,
    /// The same in words: type=bind|volume|tmpfs,source=…,target=…,readonly
    #[arg(long, value_name = "K=V,…", value_parser = mount)]
    mount: Vec<Mount>,
    /// An empty filesystem in memory
    #[arg(long, value_name = "DST[:OPTIONS]", value_parser = tmpfs)]
    tmpfs: Vec<Tmpfs>,
    /// What becomes of the volumes that the image declares: each is a new volume, is in memory, or is nothing special
    #[arg(long, value_name = "anonymous|tmpfs|ignore", default_value = "anonymous", hide_possible_values = true)]
    image_volume: Declared,
}

/// podman's `bind` is what it calls a volume of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Declared {
    #[default]
    #[value(alias = "bind")]
    Anonymous,
    Tmpfs,
    Ignore,
}

#[derive(Debug, Clone)]
enum Mount {
    Volume(Volume),
    Tmpfs(Tmpfs),
}

impl Mounts {
    /// Something that outlives the container can be written inside: a place of the host, or a volume.
    pub(super) fn are_written(&self) -> bool {
        let among_mounts = self.mount.iter().filter_map(|mount| match mount {
            Mount::Volume(volume) => Some(volume),
            Mount::Tmpfs(_) => None,
        });
        self.volume.iter().chain(among_mounts).any(|volume| !volume.read_only)
    }

    /// Those that show something, and those in memory.
    pub(super) fn split(&self) -> Result<(Vec<Volume>, Vec<Tmpfs>)> {
        let (mut volumes, mut tmpfs) = (self.volume.clone(), self.tmpfs.clone());
        for mount in &self.mount {
            match mount {
                Mount::Volume(volume) => volumes.push(volume.clone()),
                Mount::Tmpfs(more) => tmpfs.push(more.clone()),
            }
        }
        let mut places: Vec<&PathBuf> =
            volumes.iter().map(|v| &v.destination).chain(tmpfs.iter().map(|t| &t.destination)).collect();
        places.sort();
        if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{}: two mounts at one place", twice[0].display());
        }
        Ok((volumes, tmpfs))
    }

    pub(super) fn image_volumes(&self) -> ImageVolumes {
        match self.image_volume {
            Declared::Anonymous => ImageVolumes::Anonymous,
            Declared::Tmpfs => ImageVolumes::Tmpfs,
            Declared::Ignore => ImageVolumes::Ignore,
        }
    }
}

fn volume(text: &str) -> Result<Volume> {
    let (source, destination, options) = match *text.split(':').collect::<Vec<_>>().as_slice() {
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => bail!("not [SRC|NAME:]DST[:OPTIONS]"),
    };
    let mut volume = match source {
        None => Volume { anonymous: true, ..Volume::new("", absolute(destination)?) },
        Some(source) => Volume { ..shown(source, destination)? },
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" => volume.read_only = false,
            "ro" => volume.read_only = true,
            "idmap" => volume.mapped = true,
            "noidmap" => volume.mapped = false,
            "copy" => volume.copies = true,
            "nocopy" => volume.copies = false,
            other => bail!("{other}: an option that is not ro, rw, idmap, noidmap, copy or nocopy"),
        }
    }
    Ok(volume)
}

/// A path of the host, or a volume by name.
fn shown(source: &str, destination: &str) -> Result<Volume> {
    if source.starts_with(['/', '.']) { bind(source, destination) } else { named(source, destination) }
}

fn bind(source: &str, destination: &str) -> Result<Volume> {
    let source = std::path::absolute(source)?;
    if !source.exists() {
        bail!("{}: no such file or directory", source.display());
    }
    Ok(Volume::new(source, absolute(destination)?))
}

fn named(name: &str, destination: &str) -> Result<Volume> {
    let name = name.parse::<VolumeName>().map_err(|_| {
        anyhow!(
            "{name:?}: neither a path, which begins with / or ., nor a volume's name of letters, digits, '_', '.', '-'"
        )
    })?;
    Ok(Volume { name: Some(name), ..Volume::new("", absolute(destination)?) })
}

fn tmpfs(text: &str) -> Result<Tmpfs> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    Ok(Tmpfs { destination: absolute(destination)?, options: options.to_string() })
}

fn absolute(text: &str) -> Result<PathBuf> {
    match text.starts_with('/') {
        true => Ok(PathBuf::from(text)),
        false => Err(anyhow!("{text:?}: the place inside is not absolute")),
    }
}

/// What `--mount` says, word by word.
#[derive(Default)]
struct Said<'a> {
    kind: Option<&'a str>,
    source: Option<&'a str>,
    target: Option<&'a str>,
    read_only: bool,
    mapped: Option<bool>,
    copies: Option<bool>,
    /// What only a tmpfs has.
    tmpfs: Vec<String>,
}

fn mount(text: &str) -> Result<Mount> {
    let mut said = Said::default();
    for word in text.split(',') {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        let needed = || value.filter(|value| !value.is_empty()).ok_or_else(|| anyhow!("{key}: without a value"));
        match key {
            "type" => said.kind = Some(needed()?),
            "source" | "src" => said.source = Some(needed()?),
            "target" | "destination" | "dst" => said.target = Some(needed()?),
            "readonly" | "ro" => said.read_only = flag(key, value)?,
            "rw" => said.read_only = !flag(key, value)?,
            "idmap" => said.mapped = Some(flag(key, value)?),
            "copy" => said.copies = Some(flag(key, value)?),
            "nocopy" | "volume-nocopy" => said.copies = Some(!flag(key, value)?),
            // Mounts go neither way here: that is what podman calls so, too.
            "bind-propagation" if matches!(needed()?, "private" | "rprivate") => {}
            "bind-propagation" => bail!("bind-propagation: only private and rprivate: no mount goes out or comes in"),
            "tmpfs-size" => said.tmpfs.push(format!("size={}", bytes(needed()?)?)),
            "tmpfs-mode" => said.tmpfs.push(format!("mode={}", needed()?)),
            _ => bail!("{key:?}: not one of type, source, target, readonly, idmap, copy, tmpfs-size, tmpfs-mode"),
        }
    }
    let target = said.target.ok_or_else(|| anyhow!("no target"))?;
    let kind = said.kind.unwrap_or("volume");
    if kind == "tmpfs" {
        if said.source.is_some() || said.mapped.is_some() || said.copies.is_some() {
            bail!("a tmpfs has no source, no ids to map and nothing to copy");
        }
        said.tmpfs.extend(said.read_only.then(|| "ro".to_string()));
        return Ok(Mount::Tmpfs(Tmpfs { destination: absolute(target)?, options: said.tmpfs.join(",") }));
    }
    if !said.tmpfs.is_empty() {
        bail!("tmpfs-size and tmpfs-mode are for type=tmpfs");
    }
    let volume = match (kind, said.source) {
        ("bind", Some(source)) => bind(source, target)?,
        ("bind", None) => bail!("no source"),
        ("volume", Some(name)) => named(name, target)?,
        ("volume", None) => Volume { anonymous: true, ..Volume::new("", absolute(target)?) },
        _ => bail!("type={kind}: not bind, volume or tmpfs"),
    };
    let (read_only, mapped) = (said.read_only, said.mapped.unwrap_or(true));
    Ok(Mount::Volume(Volume { read_only, mapped, copies: said.copies.unwrap_or(true), ..volume }))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => bail!("{key}={other}: not true or false"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_up_to_three_parts() {
        let volume_of = |text| volume(text).expect(text);
        let plain = Volume::new("/etc", "/x");
        assert_eq!(volume_of("/etc:/x"), plain);
        assert_eq!(volume_of("/etc:/x:ro,noidmap"), Volume { read_only: true, mapped: false, ..plain });
        let named = volume_of("data:/x:nocopy");
        assert_eq!((named.name.map(String::from).as_deref(), named.copies), (Some("data"), false));
        assert!(volume_of("/x").anonymous);
        for text in ["", "x", "/etc:x", "na/me:/x", "/etc:/x:zz", "/etc:/x:ro:z", "/no/such/place:/x", ":/x"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mounts_are_words() {
        let volume_of = |text| match mount(text).expect(text) {
            Mount::Volume(volume) => volume,
            Mount::Tmpfs(tmpfs) => panic!("{tmpfs:?}"),
        };
        assert_eq!(volume_of("type=bind,src=/etc,dst=/x,ro"), Volume { read_only: true, ..Volume::new("/etc", "/x") });
        assert_eq!(volume_of("type=bind,source=/etc,target=/x,readonly=false"), Volume::new("/etc", "/x"));
        assert_eq!(volume_of("source=data,destination=/x").name.map(String::from).as_deref(), Some("data"));
        assert!(volume_of("type=volume,target=/x").anonymous);
        match mount("type=tmpfs,target=/x,tmpfs-size=1m,tmpfs-mode=700,ro").expect("a tmpfs") {
            Mount::Tmpfs(tmpfs) => assert_eq!(tmpfs.options, "size=1048576,mode=700,ro"),
            Mount::Volume(volume) => panic!("{volume:?}"),
        }
        for text in [
            "",
            "type=bind",
            "type=bind,target=/x",
            "type=bind,src=/no/such/place,target=/x",
            "type=image,src=a,target=/x",
            "target=x",
            "target=/x,ro=perhaps",
            "target=/x,colour=red",
            "target=/x,tmpfs-size=1m",
            "type=tmpfs,src=a,target=/x",
            "type=bind,src=/etc,target=/x,bind-propagation=shared",
        ] {
            assert!(mount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_place_has_one_mount() {
        let mounts = |volumes: &[&str], tmpfs: &[&str]| Mounts {
            volume: volumes.iter().map(|text| volume(text).expect("one")).collect(),
            tmpfs: tmpfs.iter().map(|text| super::tmpfs(text).expect("one")).collect(),
            ..Mounts::default()
        };
        assert!(mounts(&["/etc:/a", "b:/b"], &["/c"]).split().is_ok());
        assert!(mounts(&["/etc:/a", "b:/a"], &[]).split().is_err());
        assert!(mounts(&["/etc:/a"], &["/a:ro"]).split().is_err());
    }
}
