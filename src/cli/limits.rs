//! How much an image may ask for: the flags of all that unpacks one.

use clap::Args;
use tupper::layer::Limits;

use super::run::bytes;

/// The limits that keep a hostile or broken image from taking all there is. Whoever trusts one may raise them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// Bytes that the image may take unpacked, all layers together; without it 80 % of what the store has free
    #[arg(long, value_name = "SIZE", value_parser = bytes, hide_short_help = true)]
    max_size: Option<u64>,
    /// Bytes of one file, holes included
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "8T", hide_short_help = true)]
    max_file_size: u64,
    /// Entries of a layer, and directories that come to be without one
    #[arg(long, value_name = "NUMBER", default_value = "10000000", hide_short_help = true)]
    max_entries: u64,
    /// Directories above an entry
    #[arg(long, value_name = "NUMBER", default_value = "16384", hide_short_help = true)]
    max_depth: usize,
    /// Bytes of an entry's name, or of a link's target
    #[arg(long, value_name = "SIZE", value_parser = memory, default_value = "64K", hide_short_help = true)]
    max_name: usize,
    /// Bytes of an entry's extended (PAX) header
    #[arg(long, value_name = "SIZE", value_parser = memory, default_value = "1M", hide_short_help = true)]
    max_pax: usize,
    /// Pieces of a sparse file
    #[arg(long, value_name = "NUMBER", default_value = "1000000", hide_short_help = true)]
    max_sparse_pieces: usize,
    /// Bytes behind the end of a layer's archive
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "64M", hide_short_help = true)]
    max_padding: u64,
    /// Bytes of the image's config, at most 64M
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "4M", hide_short_help = true)]
    max_config: u64,
}

/// Bytes that are held in memory.
fn memory(text: &str) -> anyhow::Result<usize> {
    Ok(usize::try_from(bytes(text)?)?)
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Limits {
        Limits {
            bytes: args.max_size,
            of_free: false,
            file_size: args.max_file_size,
            padding: args.max_padding,
            entries: args.max_entries,
            depth: args.max_depth,
            name: args.max_name,
            pax: args.max_pax,
            sparse_pieces: args.max_sparse_pieces,
            config: args.max_config,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        limits: LimitArgs,
    }

    #[test]
    fn without_flags_the_defaults_hold() {
        let parsed = Alone::parse_from(["alone"]);
        assert_eq!(Limits::from(parsed.limits), Limits::default());
    }

    #[test]
    fn each_limit_has_a_flag() {
        let line = "alone --max-size 1k --max-file-size 2k --max-padding 3k --max-entries 4 --max-depth 5 --max-name 6k \
                    --max-pax 7k --max-sparse-pieces 8 --max-config 9k";
        let parsed = Alone::parse_from(line.split_whitespace());
        let wanted = Limits {
            bytes: Some(1 << 10),
            of_free: false,
            file_size: 2 << 10,
            padding: 3 << 10,
            entries: 4,
            depth: 5,
            name: 6 << 10,
            pax: 7 << 10,
            sparse_pieces: 8,
            config: 9 << 10,
        };
        assert_eq!(Limits::from(parsed.limits), wanted);
    }
}
