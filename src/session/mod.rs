//! One task for each client connection.
