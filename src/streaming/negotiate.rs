//! Upgrade headers and protocol negotiation.
