//! What a registry asks for before it answers: `WWW-Authenticate` (RFC 9110, 11.6.1; distribution token-spec).

use reqwest::header::{self, HeaderMap};

/// A way to say who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// The best challenge of an answer that is known here.
pub(super) fn best(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut found: Vec<Challenge> = values.flat_map(parse).collect();
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found.into_iter().next()
}

/// The challenges of one header.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            // A parameter of the scheme before it.
            Some(value) => {
                let (value, left) = parameter(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = left;
            }
            None => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    let known = |(scheme, parameters): (String, Vec<(String, String)>)| {
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service") }),
            _ => None,
        }
    };
    found.into_iter().filter_map(known).collect()
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_string(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_whatever_their_order_and_quotes() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.to_string(),
            service: service.map(str::to_string),
        };
        for (text, challenges) in [
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"a:b,c\"",
                vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"))],
            ),
            ("Bearer service = a\\b , realm = https://x", vec![bearer("https://x", Some("a\\b"))]),
            (
                "Negotiate, Basic realm=\"a, Bearer \\\" b\", BEARER realm=\"r\"",
                vec![Challenge::Basic, bearer("r", None)],
            ),
            ("Bearer service=\"no realm\"", vec![]),
            ("Digest realm=\"x\", nonce=\"y\"", vec![]),
            ("=,=\"", vec![]),
            ("Bearer realm=\"never closed", vec![bearer("never closed", None)]),
            ("", vec![]),
        ] {
            assert_eq!(parse(text), challenges, "{text}");
        }
    }

    #[test]
    fn a_token_is_better_than_a_password() {
        let mut headers = HeaderMap::new();
        for value in ["Basic realm=x", "Bearer realm=r"] {
            headers.append(header::WWW_AUTHENTICATE, value.parse().expect("a value"));
        }
        assert!(matches!(best(&headers), Some(Challenge::Bearer { .. })));
    }
}
