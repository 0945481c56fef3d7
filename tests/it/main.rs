//! The proxy as its users see it: a process in front of a real RabbitMQ.
//!
//! A script that runs against RabbitMQ directly runs through the proxy unchanged, and must see the same: many tests
//! here compare just that.

#![allow(unreachable_pub)] // the whole is one binary: nothing is reachable from outside

mod acks;
mod admin;
mod alone;
mod bad_input;
mod check_back;
mod clients;
mod command;
mod connects;
mod crash;
mod dashboard;
mod database;
mod dead;
mod faults;
mod fidelity;
mod half;
mod judgement;
mod login;
mod monitoring;
mod neighbours;
mod oauth;
mod on_postgres;
mod openapi;
mod parser;
mod pipeline;
mod postgres;
mod process;
mod publish;
mod quick_starts;
mod recipe;
mod relay;
mod relay_alone;
mod relay_aside;
mod relay_limits;
mod reload;
mod service;
mod spans;
mod support;
mod transaction;
