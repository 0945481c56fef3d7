//! Reply codes (AMQP 0-9-1, section 1.2), and whether RabbitMQ closes the channel or the connection with them.

/// A reply code of `channel.close`, `connection.close` or `basic.return`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplyCode(pub u16);

impl ReplyCode {
    /// Everything went well; what a polite close carries.
    pub const SUCCESS: Self = Self(200);
    /// A mandatory message found no queue.
    pub const NO_ROUTE: Self = Self(312);
    /// The operator, or a lost RabbitMQ, ends the connection.
    pub const CONNECTION_FORCED: Self = Self(320);
    /// The user may not do that.
    pub const ACCESS_REFUSED: Self = Self(403);
    /// There is no such thing.
    pub const NOT_FOUND: Self = Self(404);
    /// Somebody else has it now.
    pub const RESOURCE_LOCKED: Self = Self(405);
    /// Something that must hold before does not.
    pub const PRECONDITION_FAILED: Self = Self(406);
    /// Bytes that are no frame, or a frame that is too large.
    pub const FRAME_ERROR: Self = Self(501);
    /// A frame came that may not stand there.
    pub const UNEXPECTED_FRAME: Self = Self(505);
    /// Out of a resource: here, of room in the store.
    pub const RESOURCE_ERROR: Self = Self(506);
    /// RabbitMQ forbids it: a virtual host, or one channel or connection too many.
    pub const NOT_ALLOWED: Self = Self(530);
    /// Not the client's fault: here, the store's.
    pub const INTERNAL_ERROR: Self = Self(541);

    /// The name that RabbitMQ puts before its texts, or `""` for a code that it has no name for.
    pub fn name(self) -> &'static str {
        match self.0 {
            200 => "NORMAL",
            311 => "CONTENT_TOO_LARGE",
            312 => "NO_ROUTE",
            313 => "NO_CONSUMERS",
            320 => "CONNECTION_FORCED",
            402 => "INVALID_PATH",
            403 => "ACCESS_REFUSED",
            404 => "NOT_FOUND",
            405 => "RESOURCE_LOCKED",
            406 => "PRECONDITION_FAILED",
            501 => "FRAME_ERROR",
            502 => "SYNTAX_ERROR",
            503 => "COMMAND_INVALID",
            504 => "CHANNEL_ERROR",
            505 => "UNEXPECTED_FRAME",
            506 => "RESOURCE_ERROR",
            530 => "NOT_ALLOWED",
            540 => "NOT_IMPLEMENTED",
            541 => "INTERNAL_ERROR",
            _ => "",
        }
    }

    /// A text as RabbitMQ writes it: `NOT_FOUND - no exchange 'x' in vhost '/'`.
    pub fn text(self, detail: &str) -> String {
        format!("{} - {detail}", self.name())
    }
}

impl std::fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
