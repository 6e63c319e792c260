//! The server from outside, over sockets: what clients get, and what the ledger holds afterwards.

mod lab;

mod agents;

mod api;

mod dialects;

mod fields;

mod images;

mod limits;

mod models;

mod odd_pictures;

mod operations;

mod overload;

mod pages;

mod tls;

mod browser;
