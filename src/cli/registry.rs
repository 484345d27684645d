//! `tupper image pull`, `image push`, `login`, `logout`

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use console::Term;
use tupper::check;
use tupper::error::{Context, Error, Kind};
use tupper::image;
use tupper::interrupt;
use tupper::layer::Limits;
use tupper::name::Id;
use tupper::prompt;
use tupper::store::{Found, Shelf, Store};
use tupper::transport::registry::{Client, Credential, Options, PushOptions, Reference, Surroundings};
use tupper::transport::{Compression, Format, Platform, Style};

use super::limits::LimitArgs;
use super::output;
use super::progress::LayerBars;

/// The flags of all that talks to a registry.
#[derive(Debug, Args)]
struct Access {
    /// Whether the registry has to prove by TLS who it is; as registries.conf says without it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,
    /// The file with the credentials
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// A directory with certificates: *.crt of authorities, *.cert and *.key to show
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
}

impl Access {
    fn client(self, credential: Option<Credential>) -> Result<Client> {
        let options = Options {
            tls_verify: self.tls_verify,
            credential,
            auth_file: self.authfile,
            cert_dir: self.cert_dir,
            ..Options::default()
        };
        Ok(Client::new(options, Surroundings::of_process())?)
    }
}

/// How an image is taken from a registry.
#[derive(Debug, Args)]
struct Fetching {
    /// Which image of those that are there for several platforms; this machine's without it
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// Who to be to the registry; without a password it is asked for
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    #[command(flatten)]
    access: Access,
    /// No progress bars
    #[arg(long, short)]
    quiet: bool,
}

impl Fetching {
    /// Pulls the image into the store at `root`, which is made if it is not there; `announced` where nobody asked for just that.
    fn pull(self, root: &Path, reference: &Reference, limits: &Limits, announced: bool) -> Result<(Store, Id)> {
        interrupt::catch()?;
        let platform = self.platform.unwrap_or_else(Platform::host);
        let client = self.access.client(self.creds.as_deref().map(credential).transpose()?)?;
        let bars = LayerBars::new(self.quiet);
        let doing = || output::one_line(format_args!("pull {reference}"));
        // Before the store, which a name that leads nowhere does not need.
        let found = client.find(reference, &platform).context(doing)?;
        let store = Store::open_or_init(root)?;
        check::tidy(&store);
        if announced && !self.quiet && !store.exists(Shelf::Images, &found.digest().id())? {
            log::info!("{}", output::one_line(format_args!("pulling {reference}")));
        }
        let id = image::pull(&store, found, limits, &bars.callback()).context(doing);
        bars.clear();
        Ok((store, id?))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper pull docker.io/library/debian:12")]
pub(super) struct Pull {
    /// The image: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
    #[arg(value_name = "IMAGE")]
    reference: Reference,
    #[command(flatten)]
    fetching: Fetching,
    #[command(flatten)]
    limits: LimitArgs,
}

fn credential(text: &str) -> Result<Credential> {
    match text.split_once(':') {
        Some((user, password)) => Ok(Credential::password(user, password)),
        None => Ok(Credential::password(text, ask("Password", true)?)),
    }
}

impl Pull {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        output::line(self.fetching.pull(root, &self.reference, &self.limits.into(), false)?.1)
    }
}

/// What a new container takes from a registry: podman-run(1), `--pull`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pulling")]
pub(super) struct Pulling {
    /// When to pull the image: when it is not here, always, when the registry has another one and can be asked, or never
    #[arg(
        long,
        value_name = "missing|always|newer|never",
        default_value = "missing",
        env = "TUPPER_PULL",
        hide_env = true,
        hide_possible_values = true
    )]
    pull: When,
    #[command(flatten)]
    fetching: Fetching,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Missing,
    Always,
    Newer,
    Never,
}

impl Pulling {
    /// What only looks changes nothing.
    pub(super) fn never(self) -> Pulling {
        Pulling { pull: When::Never, ..self }
    }

    /// Pulls the image that `source` names if that is wanted, and has `source` name what came. Returns the store, if there is
    /// one.
    pub(super) fn provide(self, root: &Path, store: Option<Store>, source: &mut String) -> Result<Option<Store>> {
        let Some((reference, is_here)) = self.wanted(store.as_ref(), source)? else { return Ok(store) };
        let pulled = self.fetching.pull(root, &reference, &Limits::default(), true);
        if interrupt::caught().is_none() {
            interrupt::release()?;
        }
        match pulled {
            Ok((store, id)) => {
                // Asked for by its digest, or by another name than it has here.
                if store.find(source).ok().is_none_or(|found| found.id != id) {
                    *source = format!("image:{id}");
                }
                Ok(Some(store))
            }
            Err(e) if is_here && self.pull == When::Newer && interrupt::caught().is_none() => {
                log::info!("{}", output::one_line(format_args!("the image that is here is taken: {e:#}")));
                Ok(store)
            }
            Err(e) if is_here || interrupt::caught().is_some() => Err(e),
            Err(e) => {
                Err(e.context(output::one_line(format_args!("{source}: no such container or snapshot or image here"))))
            }
        }
    }

    /// The image to pull, and whether there is one of this name already; `None` if nothing is.
    fn wanted(&self, store: Option<&Store>, source: &str) -> Result<Option<(Reference, bool)>> {
        if self.pull == When::Never {
            return Ok(None);
        }
        let here = match store.map(|store| store.find(source)) {
            Some(Ok(Found { shelf: Shelf::Images, .. })) => {
                store.map(|store| image::find(store, source)).transpose()?
            }
            Some(Err(e)) if e.kind() == Kind::NotFound => None,
            // A container, a snapshot; or who looks for it again says what is wrong.
            Some(_) => return Ok(None),
            None => None,
        };
        let Some(here) = here else { return Ok(pullable(source).map(|reference| (reference, false))) };
        let fits = self.fetching.platform.as_ref().is_none_or(|platform| platform.fits(&here.config));
        let named = here.named(source).filter(|_| self.pull != When::Missing || !fits);
        named.map(|name| Ok((name.to_string().parse()?, true))).transpose()
    }
}

/// What a source could be called in a registry, if it can only be an image.
fn pullable(source: &str) -> Option<Reference> {
    let name = match source.split_once(':') {
        Some(("image", rest)) => rest,
        Some(("container" | "snapshot" | "sha256", _)) => return None,
        _ => source,
    };
    name.parse().ok().filter(|_| name.parse::<Id>().is_err())
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper push debian:12 127.0.0.1:5000/debian:12")]
pub(super) struct Push {
    /// Name or id of the image
    image: String,
    /// Where it goes: [REGISTRY/]REPOSITORY[:TAG]; what the image is called without it
    destination: Option<Reference>,
    /// Who to be to the registry; without a password it is asked for
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    #[command(flatten)]
    access: Access,
    /// No progress bars
    #[arg(long, short)]
    quiet: bool,
    /// Write the digest of the manifest to a file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    /// What compresses layers, those too that have travelled otherwise: gzip or zstd
    #[arg(long, value_name = "gzip|zstd")]
    compression_format: Option<Format>,
    /// How much time that may take: 1 to 9 for gzip, 1 to 20 for zstd
    #[arg(long, value_name = "LEVEL")]
    compression_level: Option<u32>,
    /// Whose manifest it is: oci, or v2s2 (docker)
    #[arg(long, short, value_name = "oci|v2s2|docker", default_value = "oci", hide_default_value = true, value_parser = style)]
    format: Style,
}

/// podman-push(1), `--format`.
fn style(text: &str) -> Result<Style, String> {
    match text {
        "oci" => Ok(Style::Oci),
        "v2s2" | "docker" => Ok(Style::Docker),
        _ => Err("oci and v2s2 are known".to_string()),
    }
}

impl Push {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        interrupt::catch()?;
        let options = PushOptions {
            style: self.format,
            compression: Compression::new(self.compression_format.unwrap_or_default(), self.compression_level)?,
            recompress: self.compression_format.is_some(),
        };
        let store = super::open_existing(root)?;
        let image = image::find(&store, &self.image)?;
        let reference = match self.destination {
            Some(given) => given,
            None => match image.named(&self.image) {
                Some(name) => name.to_string().parse()?,
                None => {
                    let error = Error::new(Kind::Invalid, format!("push {}: where to?", output::one_line(&self.image)));
                    return Err(error.with_hint("say it behind the image: REGISTRY/REPOSITORY:TAG").into());
                }
            },
        };
        let client = self.access.client(self.creds.as_deref().map(credential).transpose()?)?;
        let bars = LayerBars::new(self.quiet);
        let doing = || output::one_line(format_args!("push {reference}"));
        let pushed = image::push(&store, &image, &client, &reference, &options, &bars.push_callback()).context(doing);
        bars.clear();
        let digest = pushed?.manifest;
        if let Some(file) = &self.digestfile {
            std::fs::write(file, digest.to_string()).context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper login -u me --password-stdin quay.io < password")]
pub(super) struct Login {
    /// HOST[:PORT]
    registry: String,
    /// The user's name
    #[arg(long, short)]
    username: Option<String>,
    /// The password; better read from standard input, where nobody sees it
    #[arg(long, short)]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// Print the name of the user who is logged in, and do nothing
    #[arg(long, conflicts_with_all = ["username", "password", "password_stdin"])]
    get_login: bool,
    #[command(flatten)]
    access: Access,
}

impl Login {
    pub(super) fn run(self) -> Result<()> {
        interrupt::catch()?;
        let client = self.access.client(None)?;
        let known = client.logged_in(&self.registry)?;
        if self.get_login {
            let user = known.as_ref().and_then(Credential::user);
            let error = || Error::new(Kind::NotFound, format!("not logged in to {}", self.registry));
            return output::line(user.ok_or_else(error)?);
        }
        let user = match self.username {
            Some(user) => user,
            None => ask("Username", false)?,
        };
        let password = match self.password {
            Some(password) => password,
            None if self.password_stdin => {
                let mut text = String::new();
                std::io::stdin().take(64 << 10).read_to_string(&mut text).context(|| "read the password")?;
                text.trim_end_matches(['\r', '\n']).to_string()
            }
            None => ask("Password", true)?,
        };
        if user.is_empty() || password.is_empty() || user.contains(':') {
            return Err(Error::new(Kind::Invalid, "a user name without colon and a password are needed").into());
        }
        client.login(&self.registry, &user, &password).context(|| format!("log in to {}", self.registry))?;
        output::line("Login Succeeded!")
    }
}

/// Asks on the terminal.
fn ask(what: &str, secret: bool) -> Result<String> {
    let terminal = Term::stderr();
    let show = || Ok(terminal.write_str(&format!("{what}: "))?);
    let answer = if terminal.is_term() { prompt::line(secret, show) } else { Ok(None) };
    let missing = || {
        let error = Error::new(Kind::Invalid, format!("no {}, and no terminal to ask on", what.to_lowercase()));
        error.with_hint("give -u NAME and --password-stdin")
    };
    Ok(answer.context(|| format!("ask for the {}", what.to_lowercase()))?.ok_or_else(missing)?)
}

#[derive(Debug, Args)]
pub(super) struct Logout {
    /// HOST[:PORT]
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    registry: Option<String>,
    /// All registries
    #[arg(long, short)]
    all: bool,
    /// The file with the credentials
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

impl Logout {
    pub(super) fn run(self) -> Result<()> {
        let access = Access { tls_verify: None, authfile: self.authfile, cert_dir: None };
        let was = access.client(None)?.logout(self.registry.as_deref())?;
        match &self.registry {
            Some(registry) if !was => Err(Error::new(Kind::NotFound, format!("not logged in to {registry}")).into()),
            Some(registry) => output::line(format_args!("Removed login credentials for {registry}")),
            None => output::line("Removed login credentials for all registries"),
        }
    }
}
