//! Networks: links, addresses, rules, ports and names, on hosts that a test makes of network namespaces.

mod explain;
mod host;
mod names;
mod networks;
mod ports;
mod reach;
mod remains;
