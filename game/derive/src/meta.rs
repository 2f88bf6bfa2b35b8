//! `#[derive(Meta)]`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, Ident, Meta, Result};

/// Fields that a kind may declare: `FIELDS_MAX` of the protocol, to which a test of `game-core` holds it.
const FIELDS_MAX: usize = 32;
/// Bytes of a field's name.
const NAME_BYTES_MAX: usize = 64;

/// A field as it is declared.
struct Declared<'a> {
    field: &'a Ident,
    name: String,
    holds: TokenStream,
    index: TokenStream,
    fault: TokenStream,
}

/// The implementation of `Meta` for a struct, with constants that don't compile when a field can't be.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let fields = fields(input)?;
    let mut errors: Option<Error> = None;
    let mut complain = |error: Error| match &mut errors {
        Some(errors) => errors.combine(error),
        None => errors = Some(error),
    };
    let mut declared = Vec::new();
    for (number, field) in fields.iter().enumerate() {
        if number >= FIELDS_MAX {
            complain(Error::new_spanned(
                field,
                format!("metadata has {FIELDS_MAX} fields at most; this is one more"),
            ));
            break;
        }
        match declare(field) {
            Ok(field) => declared.push(field),
            Err(error) => complain(error),
        }
    }
    if let Some(errors) = errors {
        return Err(errors);
    }
    let name = &input.ident;
    let faults = declared.iter().map(|field| &field.fault);
    let infos = declared.iter().map(|Declared { name, holds, index, .. }| {
        quote!(::greenroom::meta::field(#name, #holds, #index))
    });
    let puts = declared.iter().map(|Declared { field, name, .. }| {
        quote! {
            if let ::core::option::Option::Some(value) = ::greenroom::meta::MetaField::value(&self.#field) {
                put(#name, value);
            }
        }
    });
    // A struct without fields puts nothing.
    let put = if declared.is_empty() { quote!(_) } else { quote!(put) };
    Ok(quote! {
        #(#faults)*
        #[automatically_derived]
        impl ::greenroom::meta::Meta for #name {
            fn fields() -> ::std::vec::Vec<::greenroom::meta::FieldInfo> {
                ::std::vec![#(#infos),*]
            }
            fn values(&self, #put: &mut impl ::core::ops::FnMut(&'static str, ::greenroom::meta::MetaValue)) {
                #(#puts)*
            }
        }
    })
}

/// The fields of a struct that can be metadata.
fn fields(input: &DeriveInput) -> Result<Vec<&Field>> {
    let no_struct =
        "metadata is a struct with named fields; for an enum of keywords, derive `MetaKeyword`";
    let data = match &input.data {
        Data::Struct(data) => data,
        Data::Enum(data) => return Err(Error::new(data.enum_token.span(), no_struct)),
        Data::Union(data) => return Err(Error::new(data.union_token.span(), no_struct)),
    };
    if let Some(index) = input.attrs.iter().find(|attribute| attribute.path().is_ident("index")) {
        return Err(Error::new_spanned(index, "an index is of a field: write it above one"));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "metadata has no parameters"));
    }
    match &data.fields {
        Fields::Named(fields) => Ok(fields.named.iter().collect()),
        Fields::Unit => Ok(Vec::new()),
        Fields::Unnamed(fields) => Err(Error::new_spanned(
            fields,
            "what is searched for has a name: write `struct Name { field: Type, .. }`",
        )),
    }
}

fn declare(field: &Field) -> Result<Declared<'_>> {
    let ident = field.ident.as_ref().expect("the fields of this struct are named");
    let name = ident.unraw().to_string();
    let plain =
        |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_';
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(Error::new_spanned(
            ident,
            format!("a field's name has a to z, 0 to 9 and _, {NAME_BYTES_MAX} of them at most"),
        ));
    }
    let index = index(&field.attrs)?;
    let holds = &field.ty;
    let holds = quote_spanned!(holds.span()=> <#holds as ::greenroom::meta::MetaField>::TYPE);
    // Found while the game is compiled, and shown at the field.
    let fault = quote_spanned! {ident.span()=>
        const _: () = if let ::core::option::Option::Some(fault) =
            ::greenroom::meta::fault(#name, #holds, #index)
        {
            ::core::panic!("{}", fault)
        };
    };
    Ok(Declared { field: ident, name, holds, index, fault })
}

/// What `#[index]` says.
fn index(attributes: &[Attribute]) -> Result<TokenStream> {
    let mut indexes = attributes.iter().filter(|attribute| attribute.path().is_ident("index"));
    let Some(index) = indexes.next() else {
        return Ok(quote!(::greenroom::meta::FieldIndex::None));
    };
    if let Some(second) = indexes.next() {
        return Err(Error::new_spanned(second, "a field has one index; keep one of them"));
    }
    let forms = "an index is `#[index]`, `#[index(ord)]` or `#[index(prefix)]`";
    match &index.meta {
        Meta::Path(_) => Ok(quote!(::greenroom::meta::FieldIndex::Equal)),
        Meta::List(list) => {
            let word: Ident = list.parse_args().map_err(|error| Error::new(error.span(), forms))?;
            if word == "ord" {
                Ok(quote!(::greenroom::meta::FieldIndex::Ordered))
            } else if word == "prefix" {
                Ok(quote!(::greenroom::meta::FieldIndex::Prefix))
            } else {
                Err(Error::new_spanned(&word, format!("there is no index `{word}`: {forms}")))
            }
        }
        Meta::NameValue(_) => Err(Error::new_spanned(index, forms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(input: &str) -> Vec<String> {
        let parsed: DeriveInput = syn::parse_str(input).unwrap();
        expand(&parsed).unwrap_err().into_iter().map(|error| error.to_string()).collect()
    }

    #[track_caller]
    fn refused(input: &str, text: &str) {
        let errors = errors(input);
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn what_can_not_be_metadata_is_refused_with_what_to_write_instead() {
        refused("struct M(u32);", "struct Name { field: Type, .. }");
        refused("enum M { A }", "derive `MetaKeyword`");
        refused("union M { a: u8 }", "named fields");
        refused("struct M<T> { a: T }", "no parameters");
        refused("#[index] struct M { a: u8 }", "above one");
        refused("struct M { #[index(order)] a: u8 }", "no index `order`: an index is `#[index]`");
        refused("struct M { #[index = 1] a: u8 }", "`#[index(ord)]`");
        refused("struct M { #[index()] a: u8 }", "`#[index(ord)]`");
        refused("struct M { #[index(ord, prefix)] a: u8 }", "`#[index(prefix)]`");
        refused("struct M { #[index] #[index(ord)] a: u8 }", "one index");
        refused("struct M { ratingMin: u8 }", "a to z");
        refused(&format!("struct M {{ {}: u8 }}", "x".repeat(65)), "64");
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let errors = errors("struct M { A: u8, #[index(x)] b: u8, c: u8, #[index(y)] d: u8 }");
        let [name, x, y] = &errors[..] else { panic!("{errors:?}") };
        assert!(name.contains("a to z") && x.contains("`x`") && y.contains("`y`"), "{errors:?}");
    }

    #[test]
    fn there_are_as_many_fields_as_may_be_and_not_one_more() {
        let fields = |n: usize| -> String { (0..n).map(|n| format!("f{n}: u8,")).collect() };
        let input = |n| format!("struct M {{ {} }}", fields(n));
        assert!(expand(&syn::parse_str(&input(FIELDS_MAX)).unwrap()).is_ok());
        refused(&input(FIELDS_MAX + 2), "32 fields at most");
    }

    #[test]
    fn a_field_with_the_name_of_a_word_of_rust_is_declared_without_its_mark() {
        let written = expand(&syn::parse_str("struct M { r#type: u8 }").unwrap()).unwrap();
        assert!(written.to_string().contains("\"type\""), "{written}");
    }
}
