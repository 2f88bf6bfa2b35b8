//! `#[derive(MetaKeyword)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::{Data, DeriveInput, Error, Fields, Result};

/// The implementation of `MetaKeyword` for an enum.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(
            &input.ident,
            "keywords are the variants of an enum; for a struct of metadata, derive `Meta`",
        ));
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "an enum of keywords has no parameters"));
    }
    if data.variants.is_empty() {
        return Err(Error::new_spanned(&input.ident, "an enum of keywords has a variant at least"));
    }
    let mut arms = TokenStream::new();
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(Error::new_spanned(
                &variant.fields,
                "a keyword is the variant's name only: keep what else there is in a field of the metadata",
            ));
        }
        let (name, keyword) = (&variant.ident, snake_case(&variant.ident.unraw().to_string()));
        arms.extend(quote!(Self::#name => #keyword,));
    }
    let name = &input.ident;
    Ok(quote! {
        #[automatically_derived]
        impl ::greenroom::meta::MetaKeyword for #name {
            fn keyword(&self) -> &'static str {
                match self { #arms }
            }
        }
    })
}

/// As `#[serde(rename_all = "snake_case")]`, so that a keyword is the same text in messages.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(input: &str) -> String {
        expand(&syn::parse_str(input).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn a_variant_is_its_name_in_snake_case() {
        let names = ["Ranked", "BattleRoyale", "X", "Mode2"].map(snake_case);
        assert_eq!(names, ["ranked", "battle_royale", "x", "mode2"]);
    }

    #[test]
    fn what_is_no_enum_of_keywords_is_refused_in_words() {
        assert!(error("struct Mode;").contains("derive `Meta`"));
        assert!(error("enum Mode { Ranked(u8) }").contains("the variant's name only"));
        assert!(error("enum Mode {}").contains("a variant at least"));
        assert!(error("enum Mode<T> { A(T) }").contains("no parameters"));
    }
}
