//! The derives with which a game says what its instances are found by: `Meta` for the struct, `MetaKeyword` for an
//! enum in one of its fields. Games take them from `greenroom`, with the traits of the same names.
//!
//! - *Takes* a struct or an enum as its tokens.
//! - *Gives* the implementation of the trait, or an error at the token that is wrong and says what to write instead.
//! - *Owns* what the attribute `#[index]` means.
//! - *Never* looks at a type's name: what a field holds is said by the trait `MetaField`, and what can't be is found
//!   by the compiler in constants that the derives write.

mod keyword;
mod meta;

use proc_macro::TokenStream;

/// Makes a struct with named fields the metadata of a kind.
///
/// Each field is declared by its name; `#[index]` on it has it indexed for `=` and `in`, `#[index(ord)]` for ranges and
/// for sorting too, and `#[index(prefix)]` a text for its beginning as well. A field without one can be searched too:
/// record by record, among those that the indexes left.
///
/// The code that it writes names the crate `greenroom`. Where that has another name, `extern crate other as greenroom;`
/// at the root gives it this one.
#[proc_macro_derive(Meta, attributes(index))]
pub fn meta(input: TokenStream) -> TokenStream {
    derived(input, meta::expand)
}

/// Makes an enum whose variants have no fields a keyword: the variant's name in `snake_case`, as serde
/// writes it with `rename_all = "snake_case"`.
#[proc_macro_derive(MetaKeyword)]
pub fn meta_keyword(input: TokenStream) -> TokenStream {
    derived(input, keyword::expand)
}

fn derived(
    input: TokenStream,
    expand: fn(&syn::DeriveInput) -> syn::Result<proc_macro2::TokenStream>,
) -> TokenStream {
    let written = syn::parse(input).and_then(|input| expand(&input));
    written.unwrap_or_else(|error| error.to_compile_error()).into()
}
