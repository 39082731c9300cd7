//! From a query's bytes to an answer: what can be said from memory, and what others must be asked for.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::cache::Reply;
use crate::records::TTL;
use crate::{Lookup, Records};

/// The largest datagram that passes every usual network unfragmented.
pub(crate) const MAX_DATAGRAM: u16 = 1232;
/// The largest datagram for clients that do not tell.
const PLAIN_DATAGRAM: u16 = 512;
/// Length of a message's header.
const HEADER: usize = 12;
/// Longest chain of aliases inside of the cluster that is followed.
const MAX_ALIASES: usize = 8;

/// What to do about a query.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing: it was no query.
    Ignore,
    /// Send this.
    Answer(Message),
    /// Ask others, then [`complete`] the message.
    Ask(Message, Query),
}

/// How many bytes the asker of a datagram accepts in return.
pub(crate) fn datagram_limit(query: &Message) -> usize {
    let wanted = query.edns.as_ref().map_or(PLAIN_DATAGRAM, Edns::max_payload);
    usize::from(wanted.clamp(PLAIN_DATAGRAM, MAX_DATAGRAM))
}

/// The message as bytes, without its records (and marked so) when it is longer than `limit`.
pub(crate) fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit {
        return Some(whole);
    }
    message.truncate().to_vec().ok().filter(|short| short.len() <= limit)
}

/// Why bytes are no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoQuery {
    /// Not even the header of one.
    Garbage,
    /// The header is one, what follows is malformed. The sender need not wait: [`format_error`] tells it.
    Malformed {
        /// The id in the header.
        id: u16,
    },
}

/// Reads a query.
pub(crate) fn parse(bytes: &[u8]) -> Result<Message, NoQuery> {
    let is_query = bytes.len() >= HEADER && bytes[2] & 0x80 == 0;
    match Message::from_vec(bytes) {
        Ok(message) if is_query && message.metadata.message_type == MessageType::Query => Ok(message),
        Err(_) if is_query => Err(NoQuery::Malformed { id: u16::from_be_bytes([bytes[0], bytes[1]]) }),
        _ => Err(NoQuery::Garbage),
    }
}

/// The answer to a malformed query.
pub(crate) fn format_error(id: u16) -> Message {
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
}

/// Answers a query from memory as far as possible. `rotation` turns the order of equal records, to spread load.
pub(crate) fn answer(records: &Records, query: &Message, rotation: usize) -> Outcome {
    let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().cloned());
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM).set_version(0);
        if asked.version() != 0 {
            message.metadata.response_code = ResponseCode::BADVERS;
            message.set_edns(edns);
            return Outcome::Answer(message);
        }
        message.set_edns(edns);
    }
    let refuse = |mut message: Message, code| {
        message.metadata.response_code = code;
        Outcome::Answer(message)
    };
    let [question] = query.queries.as_slice() else { return refuse(message, ResponseCode::FormErr) };
    if query.metadata.op_code != OpCode::Query {
        return refuse(message, ResponseCode::NotImp);
    }
    if question.query_class != DNSClass::IN {
        return refuse(message, ResponseCode::Refused);
    }
    resolve(records, message, question, rotation)
}

fn resolve(records: &Records, mut message: Message, question: &Query, rotation: usize) -> Outcome {
    // "Any" is a debugging aid: some records of the name are a valid answer (RFC 8482).
    let kind = if question.query_type == RecordType::ANY { RecordType::A } else { question.query_type };
    let mut name = question.name.clone();
    for _ in 0..MAX_ALIASES {
        match records.lookup(&name, kind) {
            Lookup::Outside => return Outcome::Ask(message, Query::query(name, kind)),
            Lookup::NotReady => {
                message.metadata.response_code = ResponseCode::ServFail;
                return Outcome::Answer(message);
            }
            Lookup::NoName => {
                message.metadata.response_code = ResponseCode::NXDomain;
                return Outcome::Answer(negative(records, message));
            }
            Lookup::Found(found) => {
                message.metadata.authoritative = true;
                if found.answers.is_empty() {
                    return Outcome::Answer(negative(records, message));
                }
                let mut answers = found.answers;
                let middle = rotation % answers.len();
                answers.rotate_left(middle);
                message.add_answers(answers.into_iter().map(|data| record(name.clone(), data)));
                message.add_additionals(found.additionals.into_iter().map(|(name, data)| record(name, data)));
                return Outcome::Answer(message);
            }
            Lookup::Alias(target) => {
                message.metadata.authoritative = true;
                message.add_answer(record(name, RData::CNAME(CNAME(target.clone()))));
                if kind == RecordType::CNAME {
                    return Outcome::Answer(message);
                }
                name = target;
            }
        }
    }
    // Aliases in a circle.
    message.metadata.response_code = ResponseCode::ServFail;
    Outcome::Answer(message)
}

fn record(name: Name, data: RData) -> Record {
    Record::from_rdata(name, TTL, data)
}

fn negative(records: &Records, mut message: Message) -> Message {
    message.metadata.authoritative = true;
    let (zone, soa) = records.start_of_authority();
    message.add_authority(record(zone, soa));
    message
}

/// Adds what others have answered; `Err` is the code to report instead.
pub(crate) fn complete(mut message: Message, reply: Result<Reply, ResponseCode>) -> Message {
    match reply {
        Ok(reply) => {
            message.metadata.response_code = reply.code;
            message.add_answers(reply.answers);
            message.add_authorities(reply.authorities);
        }
        Err(code) => message.metadata.response_code = code,
    }
    message
}
