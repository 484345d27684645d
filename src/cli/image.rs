//! `tupper image …`

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tupper::check;
use tupper::error::{Error, Kind};
use tupper::image::{self, Change, Image, Loaded, Pruned, Removed};
use tupper::interrupt;
use tupper::name::ImageName;
use tupper::store::Store;
use tupper::transport::{Platform, Source};

use super::Broken;
use super::image_filter::{Filter, Filters};
use super::limits::LimitArgs;
use super::output::{self, Listing, Shape};
use super::progress::{Bar, LayerBars};
use super::registry::{Pull, Push};
use super::save;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make an image from a root filesystem: what `docker export` writes, or a directory
    Import(Import),
    /// Load the images of an archive or a layout: what `docker save` or `podman save` writes
    Load(Load),
    /// Pull an image from a registry
    Pull(Pull),
    /// Push an image to a registry
    Push(Push),
    /// Save images into an archive or a layout that docker, podman and skopeo load
    Save(save::Save),
    /// Write the files of an image, a snapshot or a container as a tar archive
    Export(save::Export),
    /// List images
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all that is known of images, as JSON
    Inspect(Inspect),
    /// Give an image one more name
    Tag(Tag),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Show how an image came about, step by step
    History(History),
    /// Remove images without a name that nothing was made from, and what interrupted loads left
    Prune(Prune),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Import(verb) => verb.run(root)?,
            Verb::Load(verb) => verb.run(root)?,
            Verb::Pull(verb) => verb.run(root)?,
            Verb::Push(verb) => verb.run(root)?,
            Verb::Save(verb) => verb.run(root)?,
            Verb::Export(verb) => verb.run(root)?,
            Verb::Ls(verb) => verb.run(root)?,
            Verb::Inspect(verb) => return verb.run(root),
            Verb::Tag(verb) => verb.run(root)?,
            Verb::Rm(verb) => return verb.run(root),
            Verb::History(verb) => verb.run(root)?,
            Verb::Prune(verb) => verb.run(root)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: docker export ID | tupper image import - --name debian:12")]
pub(super) struct Import {
    /// A tar file (plain, gzip, zstd, xz or bzip2), a directory, an http or https URL, or - for standard input
    #[arg(value_name = "FILE|DIR|URL|-")]
    source: String,
    /// The image's name
    #[arg(long, short, value_name = "NAME[:TAG]")]
    name: Option<ImageName>,
    /// Change the image's config by a Dockerfile instruction, such as 'CMD ["sh"]'
    #[arg(long, short, value_name = "INSTRUCTION")]
    change: Vec<Change>,
    /// A comment for the image's history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

impl Import {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        interrupt::catch()?;
        let source = Source::locate(&self.source)?;
        let store = Store::open_or_init(root)?;
        check::tidy(&store);
        let bar = Bar::new(&output::one_line(format_args!("importing {source}")), self.quiet);
        let import = image::Import {
            source,
            name: self.name,
            changes: self.change,
            message: self.message,
            limits: self.limits.into(),
        };
        let id = image::import(&store, &import, bar.callback())?;
        drop(bar);
        output::line(id)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: docker save debian:12 | tupper image load")]
pub(super) struct Load {
    /// An archive (plain, gzip, zstd, xz or bzip2), an OCI layout's directory, or - for standard input
    #[arg(long, short, value_name = "FILE|DIR|-", default_value = "-", hide_default_value = true)]
    input: String,
    /// Which image of those that are there for several platforms; this machine's without it
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// No progress bars
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

impl Load {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        if self.input == "-" && std::io::stdin().is_terminal() {
            return Err(Error::new(Kind::Invalid, "standard input: it is a terminal")
                .with_hint("name the archive with -i, or redirect it here")
                .into());
        }
        interrupt::catch()?;
        let source = Source::locate(&self.input)?;
        let store = Store::open_or_init(root)?;
        check::tidy(&store);
        let bar = Bar::new(&output::one_line(format_args!("reading {source}")), self.quiet);
        let bars = LayerBars::new(self.quiet);
        let load =
            image::Load { source, platform: self.platform.unwrap_or_else(Platform::host), limits: self.limits.into() };
        let mut printed = Ok(());
        let loaded = &mut |loaded: Loaded| {
            bars.clear();
            let names: Vec<String> = loaded.names.iter().map(ToString::to_string).collect();
            let names = if names.is_empty() { vec![format!("sha256:{}", loaded.id)] } else { names };
            for name in names {
                let line = output::line(format_args!("Loaded image: {name}"));
                printed = std::mem::replace(&mut printed, Ok(())).and(line);
            }
        };
        let done = image::load(&store, &load, bar.callback(), &|_| bars.callback(), loaded);
        bars.clear();
        drop(bar);
        done?;
        printed
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only images with this name; without a tag, with any tag
    image: Option<String>,
    #[command(flatten)]
    listing: Listing,
    /// Only those of which this is so: reference, dangling, label, id, before, since, until
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = |text: &str| text.parse::<Filter>())]
    filter: Vec<Filter>,
}

impl Ls {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let (mut images, mut broken) = (Vec::new(), Broken::default());
        if let Some(store) = super::open(root)? {
            let filters = Filters::new(&store, &self.filter)?;
            images = image::list_but(&store, |e| broken.note(e))?;
            images.retain(|image| filters.take(image));
        }
        if let Some(wanted) = &self.image {
            let name: ImageName = wanted.parse()?;
            let any_tag = !wanted.ends_with(&format!(":{}", name.tag()));
            for image in &mut images {
                image
                    .names
                    .retain(|n| n.is_meant_by(wanted) || any_tag && n.is_meant_by(&format!("{wanted}:{}", n.tag())));
            }
            images.retain(|image| !image.names.is_empty());
        }
        let rows = |image: &Image| {
            let (id, created) = (output::id(&image.id, self.listing.no_trunc), output::ago(image.created));
            let row = |repository: String, tag: &str| {
                vec![repository, tag.to_string(), id.clone(), created.clone(), output::size(image.size)]
            };
            match image.names.as_slice() {
                [] => vec![row("<none>".to_string(), "<none>")],
                names => names.iter().map(|n| row(format!("{}/{}", n.registry(), n.repository()), n.tag())).collect(),
            }
        };
        let titles = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        self.listing.print(&images, |image| image.id, summary, &titles, rows)?;
        broken.report()
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Inspect {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        super::inspect(&self.images, |text| {
            let image = image::find(&store, text)?;
            Ok(details(&image, &image.document(&store)?))
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Tag {
    /// Name or id of the image
    image: String,
    /// The names that it gets
    #[arg(required = true, value_name = "NAME[:TAG]")]
    names: Vec<ImageName>,
}

impl Tag {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open_to_make(root)?;
        let image = image::find(&store, &self.image)?;
        for name in &self.names {
            image::tag(&store, &image.id, name)?;
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove all names of an image, and one that kept containers were made from
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Rm {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.dry_run)?;
        Ok(super::for_each(&self.images, |text| {
            for removed in image::remove(&store, text, self.force, self.dry_run)? {
                match removed {
                    Removed::Untagged(name) => output::line(format_args!("Untagged: {name}"))?,
                    Removed::Deleted(id) => output::line(format_args!("Deleted: {id}"))?,
                }
            }
            Ok(())
        }))
    }
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// Name or id
    image: String,
    #[command(flatten)]
    listing: Listing,
}

impl History {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        let image = image::find(&store, &self.image)?;
        let steps = image::history(&store, &image)?;
        // As in podman: what is an image has an id, which is the last step alone.
        let id_of =
            |number: usize| if number == 0 { output::id(&image.id, self.no_trunc()) } else { MISSING.to_string() };
        match self.listing.shape() {
            Shape::Quiet => output::text(&(0..steps.len()).map(|number| id_of(number) + "\n").collect::<String>()),
            Shape::Json => output::json(
                &steps
                    .iter()
                    .enumerate()
                    .map(|(number, step)| {
                        json!({
                            "id": if number == 0 { image.id.to_string() } else { MISSING.to_string() },
                            "created": step.created.map(|created| created.to_string()),
                            "Created": step.created.map(|created| created.to_string()),
                            "CreatedBy": step.created_by,
                            "size": step.size,
                            "comment": step.comment,
                            "tags": if number == 0 { names(&image) } else { Vec::new() },
                        })
                    })
                    .collect(),
            ),
            Shape::Table => {
                let rows: Vec<Vec<String>> = steps
                    .iter()
                    .enumerate()
                    .map(|(number, step)| {
                        vec![
                            id_of(number),
                            step.created.map_or_else(String::new, output::ago),
                            self.shortened(&output::one_line(&step.created_by)),
                            output::size(step.size),
                            output::one_line(&step.comment),
                        ]
                    })
                    .collect();
                output::table(&["ID", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)
            }
        }
    }

    fn no_trunc(&self) -> bool {
        self.listing.no_trunc
    }

    fn shortened(&self, text: &str) -> String {
        const LENGTH: usize = 45;
        match text.char_indices().nth(LENGTH) {
            Some(_) if !self.no_trunc() => text.chars().take(LENGTH - 3).collect::<String>() + "...",
            _ => text.to_string(),
        }
    }
}

/// The id of a step that left no image here.
const MISSING: &str = "<missing>";

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Images with names, too, as long as no kept container was made from them
    #[arg(long, short)]
    all: bool,
    /// Do not ask first
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    fn run(self, root: &Path) -> Result<()> {
        let Some(store) = super::open(root)? else { return Ok(()) };
        let what = if self.all { "all images that no container was made from" } else { "all images without a name" };
        if !self.force && !self.dry_run && !output::confirmed(what)? {
            return Ok(());
        }
        if !self.dry_run {
            check::tidy(&store);
        }
        for pruned in image::prune(&store, self.all, self.dry_run)? {
            match pruned {
                Pruned::Image(id) => output::line(id)?,
                Pruned::Layer(chain) => output::line(format_args!("layer {chain}"))?,
            }
        }
        Ok(())
    }
}

fn names(image: &Image) -> Vec<String> {
    image.names.iter().map(ToString::to_string).collect()
}

/// The image's repositories, each with the digest of the manifest that it came with.
fn digests(image: &Image) -> Vec<String> {
    let digest = |digest| image.names.iter().map(move |n| format!("{}/{}@{digest}", n.registry(), n.repository()));
    let mut digests: Vec<String> = image.manifest.into_iter().flat_map(digest).collect();
    digests.dedup();
    digests
}

/// podman-images(1), `--format json`.
fn summary(image: &Image) -> Value {
    let labels = image.config.config().as_ref().and_then(|config| config.labels().clone());
    json!({
        "Id": image.id,
        "ParentId": "",
        "RepoTags": names(image),
        "RepoDigests": digests(image),
        "Digest": image.manifest.map_or_else(String::new, |digest| digest.to_string()),
        "Names": names(image),
        "Size": image.size,
        "SharedSize": 0,
        "VirtualSize": image.size,
        "Labels": labels,
        "Created": image.created.as_second(),
        "CreatedAt": image.created.to_string(),
    })
}

/// podman-image-inspect(1). What podman tells of the manifest beside its digest is not kept.
fn details(image: &Image, document: &Value) -> Value {
    let config = image.config.config();
    let history = image.config.history().as_deref().unwrap_or_default();
    let mut details = json!({
        "Id": image.id,
        "Digest": image.manifest.map_or_else(String::new, |digest| digest.to_string()),
        "RepoTags": names(image),
        "RepoDigests": digests(image),
        "Parent": "",
        "Comment": history.last().and_then(|step| step.comment().clone()).unwrap_or_default(),
        "Created": image.created.to_string(),
        "Version": document["docker_version"].as_str().unwrap_or_default(),
        "Author": image.config.author().clone().unwrap_or_default(),
        "Architecture": image.config.architecture().to_string(),
        "Os": image.config.os().to_string(),
        "User": config.as_ref().and_then(|config| config.user().clone()).unwrap_or_default(),
        "Config": config,
        "Labels": config.as_ref().and_then(|config| config.labels().clone()),
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": { "Name": "btrfs", "Data": null },
        "RootFS": { "Type": "layers", "Layers": image.config.rootfs().diff_ids() },
        "History": history,
    });
    if let Some(check) = document["config"].get("Healthcheck") {
        details["Healthcheck"] = check.clone();
    }
    details
}
